"""Retries and error messages while the Hub fails."""

import time

import pytest
from hub_server import TOKEN, HubServer
from huggingface_hub import HfApi, get_session

from mobilevit_hf.hub import CardOptions, HubError, client, publish

REPO = "user/shapes"
CREATE, INFO, COMMIT = ("POST", "/repos/create"), ("GET", "/api/models/"), ("POST", "/commit/")
PREUPLOAD, BATCH, UPLOAD = ("POST", "/preupload/"), ("POST", "/objects/batch"), ("PUT", "/info/lfs/objects/")
STEPS = {
    "create": CREATE,
    "info": INFO,
    "preupload": PREUPLOAD,
    "batch": BATCH,
    "upload": UPLOAD,
    "commit": COMMIT,
}
OWN_RETRIES = ("create", "info", "commit")  # huggingface_hub retries the others itself
ALWAYS = 1000


@pytest.fixture
def sleeps(monkeypatch):
    """Seconds that this package and huggingface_hub sleep; only the clock advances."""
    sleeps, monotonic = [], time.monotonic
    monkeypatch.setattr(time, "sleep", sleeps.append)
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + sum(sleeps))
    return sleeps


@pytest.fixture
def hub(sleeps, hub):
    return hub


@pytest.fixture
def publish_model(classifier_dir, messages, publish_model, capfd, caplog):
    """A function that publishes, and checks that the folder is unmodified and the token is never shown."""

    def publish_and_check():
        before = {path: path.read_bytes() for path in classifier_dir.rglob("*") if path.is_file()}
        text = ""
        try:
            return publish_model(classifier_dir)
        except HubError as error:
            text = str(error)
            assert "\n" not in text
            raise
        finally:
            assert {path: path.read_bytes() for path in classifier_dir.rglob("*") if path.is_file()} == before
            captured = capfd.readouterr()
            assert TOKEN not in text + "".join(messages) + captured.out + captured.err + caplog.text

    return publish_and_check


def assert_published(hub, classifier_dir):
    files = hub.files(REPO)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        assert files[name] == (classifier_dir / name).read_bytes()
    assert hub.commits(REPO) == 2  # the initial commit and one more


# --- temporary errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
@pytest.mark.parametrize("step", STEPS)
def test_temporary_error_is_retried(step, status, hub, classifier_dir, publish_model, sleeps):
    hub.fail(*STEPS[step], status)
    publish_model()
    assert_published(hub, classifier_dir)
    assert sum(sleeps) == 1


@pytest.mark.parametrize("step", STEPS)
def test_requested_wait_is_respected(step, hub, classifier_dir, publish_model, messages, sleeps):
    hub.fail(*STEPS[step], 429, headers={"Retry-After": "20"})
    publish_model()
    assert_published(hub, classifier_dir)
    assert sleeps == [21]
    assert messages == (["The Hub returned HTTP 429. Retrying in 21 s."] if step in OWN_RETRIES else [])


def test_rate_limit_headers_are_respected(hub, publish_model, sleeps):
    hub.fail(
        *CREATE, 429, headers={"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"fixed window";"api";q=9;w=300'}
    )
    publish_model()
    assert sleeps == [56]


@pytest.mark.parametrize("step", STEPS)
def test_closed_connection_is_retried(step, hub, classifier_dir, publish_model):
    hub.cut(*STEPS[step], after=0)
    publish_model()
    assert_published(hub, classifier_dir)


@pytest.mark.parametrize("after", [0, 1, 5000])
def test_interrupted_upload_is_retried(after, hub, classifier_dir, publish_model):
    hub.cut(*UPLOAD, after=after, times=2)
    publish_model()
    assert_published(hub, classifier_dir)
    sizes = [len(r.body) for r in hub.requests if (r.method, r.path.count("/info/lfs/")) == ("PUT", 1)]
    assert sizes == [after, after, (classifier_dir / "model.safetensors").stat().st_size]


def test_lost_response_to_a_commit_makes_no_second_commit(hub, classifier_dir, publish_model):
    hub.cut(*COMMIT, after=10, answer=True)
    commit = publish_model().commit
    assert_published(hub, classifier_dir)
    assert commit == HfApi().model_info(REPO).sha


def test_stalled_read_times_out(hub, classifier_dir, publish_model, monkeypatch):
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 0.3)
    hub.stall(*INFO)
    publish_model()
    assert_published(hub, classifier_dir)


def test_shared_client_is_not_modified(hub, publish_model):
    session = get_session()
    timeout, hooks = session.timeout, {name: list(functions) for name, functions in session.event_hooks.items()}
    publish_model()
    assert get_session() is session
    assert (session.timeout, session.event_hooks) == (timeout, hooks)


# --- permanent errors ------------------------------------------------------------------------------------------------

MESSAGES = {
    401: "rejected the token.*hf auth login",
    403: "may not write to user/shapes.*settings/tokens",
    404: "user/shapes does not exist",
    409: "was changed by another commit",
    412: "was changed by another commit",
    413: "HTTP 413.*Fix that",
    429: "Too many requests.*same command again later",
    500: "HTTP 500.*same command again later",
    503: "HTTP 503.*same command again later",
}

# For a repository, 409 means that it exists.
PERMANENT = [
    (step, status)
    for step in ("create", "upload", "commit")
    for status in MESSAGES
    if (step, status) != ("create", 409)
]


@pytest.mark.parametrize(("step", "status"), PERMANENT)
def test_permanent_error_is_one_line(status, step, hub, classifier_dir, publish_model, sleeps):
    hub.fail(*STEPS[step], status, times=ALWAYS)
    with pytest.raises(HubError, match=MESSAGES[status]):
        publish_model()
    assert sum(sleeps) < 200
    hub.clear_faults()
    publish_model()
    assert_published(hub, classifier_dir)


def test_rejected_token(hub, publish_model):
    hub.fail("GET", "/api/whoami-v2", 401)
    with pytest.raises(HubError, match=r"rejected the token.*hf auth login"):
        publish_model()
    assert len(hub.requests) == 1


@pytest.mark.parametrize("step", ["create", "commit"])
def test_too_long_wait_is_an_error(step, hub, classifier_dir, publish_model, sleeps):
    hub.fail(*STEPS[step], 429, headers={"Retry-After": "3600"})
    with pytest.raises(HubError, match="again in 61 min"):
        publish_model()
    assert not sleeps
    publish_model()
    assert_published(hub, classifier_dir)


def test_total_wait_is_limited(hub, publish_model, sleeps):
    hub.fail(*CREATE, 429, times=ALWAYS, headers={"Retry-After": "100"})
    with pytest.raises(HubError, match="Too many requests"):
        publish_model()
    assert sum(sleeps) < client.MAX_SECONDS


def test_permanently_interrupted_upload(hub, classifier_dir, publish_model):
    hub.cut(*UPLOAD, after=5000, times=ALWAYS)
    with pytest.raises(HubError, match=r"can't be reached.*same command again later"):
        publish_model()
    assert hub.files(REPO) == {}
    hub.clear_faults()
    publish_model()
    assert_published(hub, classifier_dir)


def test_error_of_another_upload_protocol(hub, publish_model, monkeypatch):
    """As raised by xet, without an HTTP status; its presigned URL is not shown."""

    def upload(*args, **kwargs):
        raise RuntimeError(f"CAS: https://cas.example/a?X-Amz-Signature=5ec4e7&x=1 refused {TOKEN}")

    monkeypatch.setattr(HfApi, "preupload_lfs_files", upload)
    with pytest.raises(HubError, match=r"RuntimeError: CAS: .*same command again later") as error:
        publish_model()
    assert "5ec4e7" not in str(error.value)


def test_unreachable_hub(hub, publish_model, monkeypatch):
    with HubServer() as stopped:
        pass
    stopped.patch_client(monkeypatch)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(HubError, match="can't be reached"):
        publish_model()


def test_offline_mode(hub, publish_model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        publish_model()


@pytest.mark.parametrize("token", [f"{TOKEN}\n{TOKEN}", f"{TOKEN} ", f"{TOKEN}ä"])
def test_malformed_token_is_not_shown(token, hub, classifier_dir):
    with pytest.raises(HubError, match="characters") as error:
        publish(classifier_dir, REPO, card_options=CardOptions(license="mit"), token=token)
    assert TOKEN not in str(error.value)


def test_tokens_in_server_messages_are_redacted(hub, publish_model):
    hub.fail(*COMMIT, 403, headers={"X-Error-Message": f"Not with {TOKEN} nor hf_another1234"})
    with pytest.raises(HubError, match="Not with hf_… nor hf_…"):
        publish_model()


def test_uploaded_files_are_not_sent_again(hub, classifier_dir, publish_model):
    (classifier_dir / "executorch").mkdir()
    (classifier_dir / "executorch" / "model.pte").write_bytes(b"program" * 1000)
    hub.fail(*COMMIT, 403)
    with pytest.raises(HubError):
        publish_model()
    uploads = [r for r in hub.requests if r.method == "PUT"]
    assert len(uploads) == 2
    hub.requests.clear()
    publish_model()
    assert not [r for r in hub.requests if r.method == "PUT"]
    assert_published(hub, classifier_dir)
