"""Files of a Space on the loopback Hub."""

from huggingface_hub import HfApi

REPO, SPACE = "user/shapes", "user/try-shapes"


def space_files(hub):
    """Return the content of each file of the Space by path."""
    return hub.files(SPACE, repo_type="space")


def upload_to_space(hub, texts, sdk):
    """Commit text files, by path, to the Space as another client; a new Space has the given SDK."""
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo(SPACE, repo_type="space", space_sdk=sdk, exist_ok=True)
    for path, text in texts.items():
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo=path, repo_id=SPACE, repo_type="space")
