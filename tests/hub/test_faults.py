"""Publishing while the Hub fails: what is tried again, for how long, and what the one line says if it doesn't help."""

import time

import pytest
from hub_server import TOKEN, HubServer
from huggingface_hub import HfApi, get_session

from mobilevit_hf.hub import Given, HubError, client, publish

REPO = "user/shapes"
CREATE, UPLOAD, COMMIT = ("POST", "/repos/create"), ("PUT", "/info/lfs/objects/"), ("POST", "/commit/")
LOOK, BATCH, PREPARE = ("GET", "/api/models/"), ("POST", "/objects/batch"), ("POST", "/preupload/")
STEPS = {"create": CREATE, "look": LOOK, "prepare": PREPARE, "batch": BATCH, "upload": UPLOAD, "commit": COMMIT}
ALWAYS = 1000


@pytest.fixture
def waits(monkeypatch):
    """How long this and huggingface_hub would have slept, in seconds, instead of sleeping."""
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


@pytest.fixture
def hub(waits, hub):
    return hub


@pytest.fixture
def send(classifier, said, capfd, caplog):
    """A function that publishes; whatever happens, the folder is as it was and the token is told to nobody."""

    def send():
        before = {path: path.read_bytes() for path in classifier.rglob("*") if path.is_file()}
        told = ""
        try:
            return publish(classifier, REPO, given=Given(license="mit"), say=said.append)
        except HubError as error:
            told = str(error)
            assert "\n" not in told
            raise
        finally:
            assert {path: path.read_bytes() for path in classifier.rglob("*") if path.is_file()} == before
            captured = capfd.readouterr()
            assert TOKEN not in told + "".join(said) + captured.out + captured.err + caplog.text
            assert UPLOAD[1] not in caplog.text  # an address to upload to is a key by itself

    return send


def assert_published(hub, classifier):
    files = hub.files(REPO)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        assert files[name] == (classifier / name).read_bytes()
    assert hub.commits(REPO) == 2  # the repository's own, and one


# --- what passes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
@pytest.mark.parametrize("step", STEPS)
def test_errors_that_pass(step, status, hub, classifier, send, waits):
    hub.fail(*STEPS[step], status)
    send()
    assert_published(hub, classifier)
    assert sum(waits) == 1


@pytest.mark.parametrize("step", STEPS)
def test_waits_as_long_as_the_hub_asks(step, hub, classifier, send, said, waits):
    hub.fail(*STEPS[step], 429, headers={"Retry-After": "20"})
    send()
    assert_published(hub, classifier)
    assert waits == [21]
    assert said == ["The Hub asks to wait 21 s (HTTP 429)."]


def test_rate_limit_in_the_words_of_the_hub(hub, classifier, send, waits):
    hub.fail(
        *CREATE, 429, headers={"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"fixed window";"api";q=9;w=300'}
    )
    send()
    assert waits == [56]


@pytest.mark.parametrize("step", STEPS)
def test_connections_that_end(step, hub, classifier, send):
    hub.cut(*STEPS[step], after=0)
    send()
    assert_published(hub, classifier)


@pytest.mark.parametrize("after", [0, 1, 5000])
def test_an_upload_cut_in_the_middle(after, hub, classifier, send):
    hub.cut(*UPLOAD, after=after, times=2)
    send()
    assert_published(hub, classifier)
    sizes = [len(r.body) for r in hub.requests if (r.method, r.path.count("/info/lfs/")) == ("PUT", 1)]
    assert sizes == [after, after, (classifier / "model.safetensors").stat().st_size]


def test_the_answer_to_the_commit_is_lost(hub, classifier, send):
    """It was made: there is no second one, and it is told as made."""
    hub.cut(*COMMIT, after=10, answer=True)
    commit = send().commit
    assert_published(hub, classifier)
    assert commit == HfApi().model_info(REPO).sha


@pytest.mark.parametrize("step", STEPS)
def test_a_hub_that_says_nothing(step, hub, classifier, send, monkeypatch):
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 0.3)
    timeout = get_session().timeout
    hub.stall(*STEPS[step])
    send()
    assert_published(hub, classifier)
    assert get_session().timeout == timeout  # as it was


# --- what does not pass ----------------------------------------------------------------------------------------------

LINES = {
    401: "does not accept the token.*hf auth login",
    403: "may not write to user/shapes.*settings/tokens",
    404: "no user/shapes on the Hub",
    409: "is being changed by somebody else",
    412: "is being changed by somebody else",
    413: "HTTP 413.*Mend that",
    429: "too many requests.*same command again later",
    500: "HTTP 500.*same command again later",
    503: "HTTP 503.*same command again later",
}


# Of a repository, 409 says that it is there.
STAYING = [
    (step, status) for step in ("create", "upload", "commit") for status in LINES if (step, status) != ("create", 409)
]


@pytest.mark.parametrize(("step", "status"), STAYING)
def test_errors_that_stay_are_one_line(status, step, hub, classifier, send, waits):
    hub.fail(*STEPS[step], status, times=ALWAYS)
    with pytest.raises(HubError, match=LINES[status]):
        send()
    assert sum(waits) < 200
    hub._faults.clear()
    send()  # the same finishes it
    assert_published(hub, classifier)


def test_unknown_token(hub, send):
    hub.fail("GET", "/api/whoami-v2", 401)
    with pytest.raises(HubError, match=r"does not accept the token.*hf auth login"):
        send()
    assert len(hub.requests) == 1


def test_asked_to_wait_for_an_hour(hub, classifier, send, waits):
    for step in (CREATE, UPLOAD):
        hub.fail(*step, 429, headers={"Retry-After": "3600"})
        with pytest.raises(HubError, match="asks to wait 61 min"):
            send()
    assert not waits
    send()
    assert_published(hub, classifier)


def test_asked_to_wait_again_and_again(hub, send, waits):
    hub.fail(*UPLOAD, 429, times=ALWAYS, headers={"Retry-After": "100"})
    with pytest.raises(HubError, match="too many requests"):
        send()
    assert sum(waits) < client.PATIENCE_SECONDS


def test_the_upload_is_cut_every_time(hub, classifier, send, waits):
    hub.cut(*UPLOAD, after=5000, times=ALWAYS)
    with pytest.raises(HubError, match=r"can't be reached.*same command again later"):
        send()
    assert hub.files(REPO) == {}  # nothing half
    hub._faults.clear()
    send()
    assert_published(hub, classifier)


def test_an_upload_by_other_means_that_fails(hub, send, monkeypatch):
    """As xet does, which knows nothing of HTTP's errors."""

    def upload(*args, **kwargs):
        raise RuntimeError(f"CAS: https://cas.example/a?X-Amz-Signature=5ec4e7&x=1 refused {TOKEN}")

    monkeypatch.setattr(HfApi, "preupload_lfs_files", upload)
    with pytest.raises(HubError, match=r"RuntimeError: CAS: .*same command again later") as error:
        send()
    assert "5ec4e7" not in str(error.value)


def test_no_hub_at_all(hub, send, monkeypatch):
    with HubServer() as gone:
        pass
    gone.take_over(monkeypatch)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(HubError, match="can't be reached"):
        send()


def test_offline(hub, send, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        send()


@pytest.mark.parametrize("token", [f"{TOKEN}\n{TOKEN}", f"{TOKEN} ", f"{TOKEN}ä"])
def test_a_token_that_is_none_is_not_shown(token, hub, classifier):
    with pytest.raises(HubError, match="characters") as error:
        publish(classifier, REPO, given=Given(license="mit"), token=token)
    assert TOKEN not in str(error.value)


def test_a_token_in_what_the_hub_says_is_hidden(hub, send):
    hub.fail(*COMMIT, 403, headers={"X-Error-Message": f"Not with {TOKEN} nor hf_another1"})
    with pytest.raises(HubError, match="Not with hf_… nor hf_…"):
        send()


def test_what_was_uploaded_is_not_sent_twice(hub, classifier, send):
    (classifier / "executorch").mkdir()
    (classifier / "executorch" / "model.pte").write_bytes(b"program" * 1000)
    hub.fail(*COMMIT, 403)
    with pytest.raises(HubError):
        send()
    uploads = [r for r in hub.requests if r.method == "PUT"]
    assert len(uploads) == 2
    hub.requests.clear()
    send()
    assert not [r for r in hub.requests if r.method == "PUT"]
    assert_published(hub, classifier)


def test_command(hub, classifier, mobilevit):
    hub.fail("GET", "/api/whoami-v2", 401)
    code, out, err = mobilevit("publish", classifier, REPO, "--license", "mit")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("error: The Hub does not accept the token")
    assert TOKEN not in err
