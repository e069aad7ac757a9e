"""The loopback Hub as the real client sees it."""

import contextlib
import http.client
import io
import json
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_server import LFS_THRESHOLD, HubServer
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get

REPO = "user/repo"


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def api(hub, monkeypatch):
    # Read from the environment when huggingface_hub was imported, which is too late for variables.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return HfApi(endpoint=hub.url, token=hub.token)


@pytest.fixture
def repo(api):
    """A repository of one small file and one LFS file, as its id."""
    api.create_repo(REPO)
    files = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 8}
    api.create_commit(REPO, [CommitOperationAdd(*item) for item in files.items()], commit_message="Add a model")
    return REPO


def paths(hub, method, part):
    """The paths of the requests received with a method and `part` in their path."""
    return [request.path for request in hub.requests if request.method == method and part in request.path]


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def connect(hub):
    """A connection of another client than huggingface_hub, to close after use."""
    return contextlib.closing(http.client.HTTPConnection(hub.url.removeprefix("http://")))


def ask(connection, path, method="GET", body=None, headers=None):
    """The response to a request, and its body."""
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    return response, response.read()


def run_python(hub, home, code):
    """Run code in a clean process whose Hub is `hub`, and return what it prints as JSON."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = hub.environment(home) | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_create_repo(api):
    url = api.create_repo("repo", private=True)
    assert (url.repo_id, url.repo_type) == (REPO, "model")
    assert api.repo_exists(REPO)
    assert api.model_info(REPO).private
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(REPO)
    assert error.value.response.status_code == 409
    assert api.create_repo(REPO, exist_ok=True) == url
    assert not api.model_info(api.create_repo("organization/repo").repo_id).private


def test_whoami(api):
    assert api.whoami()["name"] == "user"


def test_upload_folder_and_snapshot_download(hub, api, tmp_path):
    folder = tmp_path / "folder"
    content = {
        "README.md": b"---\nlicense: apache-2.0\n---\n",
        "model.safetensors": b"weights",
        "empty.bin": b"",
        "data/large.txt": b"0" * (LFS_THRESHOLD + 1),
        "data/na\u00efve name #1.txt": b"text",
    }
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    api.create_repo(REPO)
    commit = api.upload_folder(repo_id=REPO, folder_path=folder)
    assert hub.files(REPO) == content
    assert api.model_info(REPO).sha == commit.oid
    assert commit.commit_url == f"{hub.url}/{REPO}/commit/{commit.oid}"
    lfs = {file.path for file in api.list_repo_tree(REPO, recursive=True) if getattr(file, "lfs", None)}
    assert lfs == {"model.safetensors", "data/large.txt"}  # the client sends empty files as regular ones
    assert len(paths(hub, "PUT", "/info/lfs/objects/")) == len(paths(hub, "POST", "/verify")) == 2

    snapshot = Path(api.snapshot_download(REPO, cache_dir=tmp_path / "cache"))
    assert snapshot.name == commit.oid
    assert {path.relative_to(snapshot).as_posix(): path.read_bytes() for path in files_in(snapshot)} == content


def test_known_content_is_not_sent_again(hub, api, repo):
    weights = hub.files(repo)["model.safetensors"]
    hub.requests.clear()
    api.upload_file(path_or_fileobj=weights, path_in_repo="copy.safetensors", repo_id=repo)
    assert hub.files(repo)["copy.safetensors"] == weights
    assert not paths(hub, "PUT", "")


def test_unchanged_files_make_no_commit(hub, api, repo):
    head = api.model_info(repo).sha
    hub.requests.clear()
    for name, data in hub.files(repo).items():
        commit = api.upload_file(path_or_fileobj=data, path_in_repo=name, repo_id=repo)
        assert commit.oid == head
    assert not paths(hub, "POST", "/commit/")


def test_commit_that_changes_nothing(hub, api, repo):
    head, before = api.model_info(repo).sha, hub.files(repo)
    again = [CommitOperationDelete("config.json"), CommitOperationAdd("config.json", before["config.json"])]
    commit = api.create_commit(repo, again, commit_message="Nothing")
    assert commit.oid != head
    assert hub.files(repo) == before


def test_delete(hub, api, repo):
    for name in ("logs/a.txt", "logs/b/c.txt", "logs.txt"):
        api.upload_file(path_or_fileobj=b"log", path_in_repo=name, repo_id=repo)
    api.delete_folder("logs", repo)
    api.delete_file("config.json", repo)
    assert set(hub.files(repo)) == {"logs.txt", "model.safetensors"}
    for delete in (api.delete_file, api.delete_folder):
        with pytest.raises(EntryNotFoundError):
            delete("logs", repo)


def test_listings(hub, api, repo):
    for name in ("a/b/c.txt", "a/d.txt"):
        api.upload_file(path_or_fileobj=b"text", path_in_repo=name, repo_id=repo)
    assert api.list_repo_files(repo) == ["a/b/c.txt", "a/d.txt", "config.json", "model.safetensors"]
    assert [entry.path for entry in api.list_repo_tree(repo)] == ["a", "config.json", "model.safetensors"]
    assert [entry.path for entry in api.list_repo_tree(repo, "a")] == ["a/b", "a/d.txt"]
    assert [entry.path for entry in api.list_repo_tree(repo, "a", recursive=True)] == ["a/b", "a/b/c.txt", "a/d.txt"]
    folder, weights = api.get_paths_info(repo, ["a", "model.safetensors", "missing"])
    assert folder.path == "a"
    assert (weights.size, weights.lfs.size, len(weights.lfs.sha256)) == (2048, 2048, 64)
    siblings = {file.rfilename: file for file in api.model_info(repo, files_metadata=True).siblings}
    assert (siblings["config.json"].size, siblings["config.json"].lfs) == (2, None)
    assert siblings["model.safetensors"].lfs.sha256 == weights.lfs.sha256
    assert siblings["model.safetensors"].blob_id == weights.blob_id


def test_download_is_cached(hub, api, repo, tmp_path):
    for name, data in hub.files(repo).items():
        path = Path(api.hf_hub_download(repo, name, cache_dir=tmp_path))
        assert path.read_bytes() == data
        hub.requests.clear()
        assert Path(api.hf_hub_download(repo, name, cache_dir=tmp_path)) == path
        assert paths(hub, "HEAD", "/resolve/")
        assert not paths(hub, "GET", "")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_download_names_its_content(hub, api, repo, name):
    """The names that listings and downloads give to a file are the ones the client computes from its content."""
    metadata = api.get_hf_file_metadata(url=f"{hub.url}/{repo}/resolve/main/{name}")
    (entry,) = api.get_paths_info(repo, name)
    addition = CommitOperationAdd(name, hub.files(repo)[name])
    addition._upload_mode = "lfs" if entry.lfs else "regular"
    assert metadata.etag == addition._local_oid == (entry.lfs.sha256 if entry.lfs else entry.blob_id)
    assert metadata.size == entry.size == len(hub.files(repo)[name])
    assert metadata.commit_hash == api.model_info(repo).sha
    with connect(hub) as connection:
        response, _ = ask(connection, f"/{repo}/resolve/main/{name}", "HEAD")
    linked = (f'"{metadata.etag}"', str(metadata.size)) if entry.lfs else (None, None)
    assert (response.headers["X-Linked-Etag"], response.headers["X-Linked-Size"]) == linked


def test_partial_download_resumes(hub, repo):
    data = hub.files(repo)["model.safetensors"]
    partial = io.BytesIO()
    partial.write(data[:1000])
    url = f"{hub.url}/{repo}/resolve/main/model.safetensors"
    http_get(url, partial, resume_size=1000, expected_size=len(data))
    assert partial.getvalue() == data
    assert [request.headers["Range"] for request in hub.requests if request.method == "GET"] == ["bytes=1000-"]


@pytest.mark.parametrize(
    ("wanted", "status", "part", "content_range"),
    [
        ("bytes=0-9", 206, slice(10), "bytes 0-9/2048"),
        ("bytes=2040-9999", 206, slice(2040, None), "bytes 2040-2047/2048"),
        ("bytes=2048-", 416, None, "bytes */2048"),
        ("lines=1-2", 200, slice(None), None),
    ],
)
def test_ranges(hub, repo, wanted, status, part, content_range):
    with connect(hub) as connection:
        response, body = ask(connection, f"/{repo}/resolve/main/model.safetensors", headers={"Range": wanted})
    assert (response.status, response.headers["Content-Range"]) == (status, content_range)
    assert part is None or body == hub.files(repo)["model.safetensors"][part]


def test_revisions(hub, api, repo, tmp_path):
    first = api.model_info(repo).sha
    api.create_branch(repo, branch="try/new")
    api.upload_file(path_or_fileobj=b"[1]", path_in_repo="config.json", repo_id=repo, revision="try/new")
    api.upload_file(path_or_fileobj=b"[2]", path_in_repo="config.json", repo_id=repo)
    api.create_branch(repo, branch="old", revision=first)
    contents = {first: b"{}", "old": b"{}", "try/new": b"[1]", "main": b"[2]"}
    for revision, content in contents.items():
        path = api.hf_hub_download(repo, "config.json", revision=revision, cache_dir=tmp_path)
        assert Path(path).read_bytes() == hub.files(repo, revision)["config.json"] == content
    branches = api.list_repo_refs(repo).branches
    assert [branch.ref for branch in branches] == ["refs/heads/main", "refs/heads/try/new", "refs/heads/old"]
    heads = {branch.name: branch.target_commit for branch in branches}
    assert heads == {name: api.model_info(repo, revision=name).sha for name in ("main", "try/new", "old")}
    assert heads["old"] == first
    with pytest.raises(HfHubHTTPError) as error:
        api.create_branch(repo, branch="old")
    assert error.value.response.status_code == 409
    api.create_branch(repo, branch="old", exist_ok=True)


def test_commits_that_cannot_be(hub, api, repo):
    """A commit to a past commit, a pull request and a commit whose parent is no longer the head."""
    first, before = api.model_info(repo).sha, hub.files(repo)
    upload = {"path_or_fileobj": b"new", "path_in_repo": "new.txt", "repo_id": repo}
    for refused in ({"revision": first}, {"create_pr": True}):
        with pytest.raises(BadRequestError):
            api.upload_file(**upload, **refused)
    assert hub.files(repo) == before
    api.upload_file(**upload, parent_commit=first)
    with pytest.raises(HfHubHTTPError) as error:
        api.upload_file(**upload | {"path_in_repo": "newer.txt"}, parent_commit=first)
    assert error.value.response.status_code == 412


def test_lfs_content_is_checked(hub, repo):
    """Neither content under a wrong SHA-256 nor a pointer to content that was not uploaded gets in."""
    wrong = "0" * 64
    header = {"key": "header", "value": {"summary": "Add weights"}}
    pointer = {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": wrong, "size": 4}}
    before = hub.files(repo)
    with connect(hub) as connection:
        for method, path, body in [
            ("PUT", f"/{repo}.git/info/lfs/objects/{wrong}", b"data"),
            ("POST", f"/api/models/{repo}/commit/main", "\n".join(map(json.dumps, (header, pointer)))),
        ]:
            response, _ = ask(connection, path, method, body)
            assert response.status == 400
        response, _ = ask(connection, f"/{repo}.git/info/lfs/objects/{wrong}/verify", "POST", '{"size": 4}')
        assert response.status == 404
    assert hub.files(repo) == before


def test_missing_things(api, repo, tmp_path):
    def download(repo_id, name, **options):
        api.hf_hub_download(repo_id, name, cache_dir=tmp_path, **options)

    for missing in ("user/missing", "missing"):
        with pytest.raises(RepositoryNotFoundError):
            download(missing, "config.json")
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(missing)
        assert not api.repo_exists(missing)
    with pytest.raises(RepositoryNotFoundError):
        api.upload_file(path_or_fileobj=b"", path_in_repo="a.txt", repo_id="user/missing")
    with pytest.raises(RevisionNotFoundError):
        download(repo, "config.json", revision="missing")
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b"", path_in_repo="a.txt", repo_id=repo, revision="missing")
    assert not api.revision_exists(repo, "0" * 40)
    with pytest.raises(EntryNotFoundError):
        download(repo, "missing.json")
    assert list(tmp_path.rglob(".no_exist/*/missing.json"))  # the client remembers
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(repo, "missing"))
    assert not api.file_exists(repo, "missing.json")


def test_datasets_are_apart_from_models(hub, api, repo, tmp_path):
    url = api.create_repo(repo, repo_type="dataset")
    assert (str(url), url.repo_type) == (f"{hub.url}/datasets/{repo}", "dataset")
    for name in ("train.csv", "image.png"):
        api.upload_file(path_or_fileobj=b"data", path_in_repo=name, repo_id=repo, repo_type="dataset")
        path = api.hf_hub_download(repo, name, repo_type="dataset", cache_dir=tmp_path)
        assert Path(path).read_bytes() == b"data"
    assert hub.files(repo, repo_type="dataset") == {"train.csv": b"data", "image.png": b"data"}
    assert api.dataset_info(repo).sha != api.model_info(repo).sha
    assert "train.csv" not in api.list_repo_files(repo)


def test_simultaneous_commits_all_land(hub, api, repo):
    names = [f"{number}.txt" for number in range(96)]

    def upload(name):
        return api.upload_file(path_or_fileobj=name.encode(), path_in_repo=name, repo_id=repo).oid

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that the server's threads get in each other's way
    try:
        with ThreadPoolExecutor(8) as threads:
            commits = list(threads.map(upload, names))
    finally:
        sys.setswitchinterval(interval)
    assert len(set(commits)) == len(names)
    assert {name: hub.files(repo)[name] for name in names} == {name: name.encode() for name in names}


def test_pages_from_elsewhere_may_read_answers(hub, repo):
    with connect(hub) as connection:
        for path in (f"/{repo}/resolve/main/config.json", f"/{repo}/resolve/main/missing", "/api/whoami-v2", "/"):
            response, _ = ask(connection, path, headers={"Origin": "http://localhost"})
            assert response.headers["Access-Control-Allow-Origin"] == "*"


def test_server_that_is_left_answers_no_more():
    with contextlib.ExitStack() as stack:
        with HubServer() as hub:
            kept_open, opened_later = (stack.enter_context(connect(hub)) for _ in range(2))
            ask(kept_open, "/api/whoami-v2")
        with pytest.raises(ConnectionError):
            ask(kept_open, "/api/whoami-v2")
        with pytest.raises(ConnectionRefusedError):
            ask(opened_later, "/api/whoami-v2")
    assert len(hub.requests) == 1


def test_token_is_received_and_not_shown(hub, api, repo, capfd):
    api.whoami()
    assert hub.requests[-1].headers["Authorization"] == f"Bearer {hub.token}"
    output = capfd.readouterr()
    assert hub.token not in repr(hub.requests) + output.out + output.err


def test_environment(hub, tmp_path, monkeypatch):
    """A subprocess reaches this server and keeps its files to its home, whatever the surroundings say."""
    for name in ("HF_HUB_CACHE", "HF_TOKEN_PATH", "TRANSFORMERS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    home = tmp_path / "home"
    home.mkdir()
    code = """
        import json
        from huggingface_hub import create_repo, get_token, hf_hub_download, upload_file
        create_repo("user/repo")
        upload_file(path_or_fileobj=b"weights", path_in_repo="model.safetensors", repo_id="user/repo")
        print(json.dumps([get_token(), hf_hub_download("user/repo", "model.safetensors")]))
    """
    token, path = run_python(hub, home, code)
    assert token == hub.token
    assert Path(path).read_bytes() == b"weights"
    assert Path(path).is_relative_to(home)
    assert not (tmp_path / "elsewhere").exists()
    assert hub.files(REPO) == {"model.safetensors": b"weights"}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A stock model and its image processor pushed from a clean process: the server, and the model's logits there."""
    code = """
        import json
        import torch
        from transformers import MobileViTConfig, MobileViTForImageClassification, MobileViTImageProcessor

        torch.manual_seed(0)
        labels = {0: "cat", 1: "dog", 2: "fish"}
        config = MobileViTConfig(
            image_size=64, hidden_sizes=[8, 8, 8], neck_hidden_sizes=[4, 4, 8, 8, 8, 8, 8], num_attention_heads=2,
            expand_ratio=1.0, id2label=labels, label2id={name: number for number, name in labels.items()},
        )
        model = MobileViTForImageClassification(config).eval()
        for name, parameter in model.named_parameters():
            # As stock transformers starts so small a model, its logits are zero whatever the image and the weights.
            if "normalization.weight" in name:
                torch.nn.init.ones_(parameter)
            else:
                torch.nn.init.normal_(parameter, std=0.4)
        processor = MobileViTImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
        model.push_to_hub("user/tiny")
        processor.push_to_hub("user/tiny")
        with torch.no_grad():
            print(json.dumps(model(torch.linspace(0, 1, 3 * 64 * 64).view(1, 3, 64, 64)).logits[0].tolist()))
    """
    with HubServer() as hub:
        yield hub, run_python(hub, tmp_path_factory.mktemp("home"), code)


def test_push_to_hub(published):
    hub, _ = published
    files = hub.files("user/tiny")
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= set(files)
    assert json.loads(files["config.json"])["architectures"] == ["MobileViTForImageClassification"]
    assert len(paths(hub, "PUT", "/info/lfs/objects/")) == 1  # the weights, and nothing else


def test_from_pretrained_and_pipeline(published, tmp_path):
    hub, logits = published
    code = """
        import json
        import torch
        from PIL import Image
        from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

        model = AutoModelForImageClassification.from_pretrained("user/tiny")
        processor = AutoImageProcessor.from_pretrained("user/tiny")
        classify = pipeline("image-classification", model="user/tiny")
        image = Image.new("RGB", (80, 64), "orange")
        with torch.no_grad():
            logits = model(torch.linspace(0, 1, 3 * 64 * 64).view(1, 3, 64, 64)).logits[0].tolist()
            probabilities = model(**processor(image, return_tensors="pt")).logits[0].softmax(-1).tolist()
        expected = dict(zip(model.config.id2label.values(), probabilities))
        print(json.dumps([logits, expected, {answer["label"]: answer["score"] for answer in classify(image)}]))
    """
    loaded_logits, expected, scores = run_python(hub, tmp_path, code)
    assert loaded_logits == pytest.approx(logits)
    assert any(logits)
    assert set(expected) == {"cat", "dog", "fish"}
    assert scores == pytest.approx(expected)
