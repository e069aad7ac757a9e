"""Fixtures of the tests that publish to the loopback Hub."""

import pytest
from huggingface_hub import HfApi

from mobilevit_hf.hub import CardOptions, publish

REPO = "user/shapes"


@pytest.fixture
def messages():
    """List of log lines; pass its `append` as `log`."""
    return []


@pytest.fixture
def publish_model(messages):
    """A function that publishes a folder as `REPO` under the MIT license; log lines go to `messages`."""

    def publish_model(folder, **options):
        return publish(folder, REPO, **{"card_options": CardOptions(license="mit"), "log": messages.append} | options)

    return publish_model


@pytest.fixture
def modifying_requests(hub):
    """A function that returns the requests that modify a repository."""
    checks = ("/validate-yaml", "/preupload/main", "/objects/batch")
    return lambda: [
        request for request in hub.requests if request.method != "GET" and not request.path.endswith(checks)
    ]


@pytest.fixture
def upload(hub):
    """A function that commits a text file to `REPO`, as another client."""

    def upload(text, name="README.md"):
        HfApi().upload_file(path_or_fileobj=text.encode(), path_in_repo=name, repo_id=REPO)

    return upload
