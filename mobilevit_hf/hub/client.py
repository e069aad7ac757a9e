"""The way to the Hub: what is tried again and for how long, and what an error means to the one who publishes."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from huggingface_hub import HfApi, ModelInfo, SpaceInfo, constants, get_session, get_token, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, parse_ratelimit_headers

T = TypeVar("T")

TRIED_AGAIN = (408, 429, 500, 502, 503, 504)
# Between the tries of a step, in seconds; huggingface_hub tries most of its requests six times for itself.
WAITS = (1, 2, 4, 8)
# The longest that a step is tried again, and that the Hub may ask to wait in all; its rate limits last 300 seconds.
PATIENCE_SECONDS = 330
# For one read or write on a connection, where huggingface_hub would wait forever.
TIMEOUT_SECONDS = 60
TOKENS_PAGE = "https://huggingface.co/settings/tokens"
TOKEN = re.compile(r"\b(hf|api_org)_\w+")
# What an address ends with that is a key to what lies there.
SIGNATURE = re.compile(r"(?<=\S)\?\S+=\S+")
MAX_SAID = 200


class HubError(OSError):
    """The Hub did not do what was asked: why and what to do, in one line. `status` is that of its answer, if any."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class _TooLongError(Exception):
    """The Hub asks to wait for longer than anybody would."""


class Hub:
    """The client of `huggingface_hub` with more patience and plainer errors.

    Args:
        token: Of the user; the one that `hf auth login` or HF_TOKEN left if None.
        say: Told in a line when there is something to wait for.

    Raises:
        HubError: If there is no token.
    """

    def __init__(self, token: str | None, say: Callable[[str], Any]) -> None:
        self.token, self.say = token or get_token(), say
        if not self.token:
            raise HubError(f"You are not signed in to the Hub. Run: hf auth login (with a token from {TOKENS_PAGE})")
        if not re.fullmatch(r"[!-~]+", self.token):  # an HTTP client would show it in its error
            raise HubError("The token has characters that none has. Copy it anew, then run: hf auth login")
        self.api = HfApi(token=self.token)
        self._waited = 0.0

    def find_repo_id(self, name: str) -> str:
        """The whole id of a repository, having seen that the token may write there.

        Args:
            name: With or without the user or organization in front.

        Raises:
            HubError: If it may not.
        """
        me = self.call(self.api.whoami, name)
        owners = {me["name"]: "admin"} | {org.get("name"): org.get("roleInOrg") for org in me.get("orgs", [])}
        owner = name.split("/")[0] if "/" in name else me["name"]
        role = (me.get("auth") or {}).get("accessToken", {}).get("role")
        if role == "read":
            raise HubError(f"The token may only read. Make one that may write ({TOKENS_PAGE}), then: hf auth login")
        # What a token of fine-grained rights may do is known to the Hub alone.
        if owners.get(owner) == "read" or (owner not in owners and role == "write"):
            raise HubError(
                f"{me['name']} may not write to {owner}: publish to {me['name']}/{name.split('/')[-1]}, or have "
                f"yourself made a member of {owner} who may."
            )
        return name if "/" in name else f"{owner}/{name}"

    def call(self, step: Callable[[], T], repo_id: str, expected: tuple[type[Exception], ...] = ()) -> T:
        """Do a step, again where an error may pass; each step can be done twice and does the same.

        Args:
            step: Talks to the Hub.
            repo_id: For the error's line.
            expected: Errors to pass on as they are.

        Raises:
            HubError: If it can't be done, or not in `PATIENCE_SECONDS`.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        for wait in (*WAITS, None):
            try:
                with self._limited():
                    return step()
            except expected:
                raise
            except (HTTPError, ConnectionError, TimeoutError, RuntimeError, _TooLongError) as raised:
                error = raised.__cause__ or raised if isinstance(raised, RuntimeError) else raised  # of an upload
                status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
                final = isinstance(error, (OfflineModeIsEnabled, _TooLongError))
                passing = status in TRIED_AGAIN or (status is None and not final)
                if wait is None or not passing or time.monotonic() > deadline:
                    # Not `from error`: its text can have a token in it, or an address that is signed with one.
                    raise HubError(self._hide(_explain(error, status, repo_id)), status) from None
                asked = _wait_asked_for(error.response) if status else None
                if asked is None:
                    reason = f"answers HTTP {status}" if status else "can't be reached"
                    self.say(f"The Hub {reason}. Trying again in {wait} s.")
                time.sleep(wait if asked is None else asked)
        raise AssertionError

    def info(self, repo_id: str, *expected: type[Exception], **options: Any) -> ModelInfo | SpaceInfo:
        """`HfApi.repo_info`, which takes no time limit but its own; errors as in `call`."""
        return self.call(lambda: self.api.repo_info(repo_id, timeout=TIMEOUT_SECONDS, **options), repo_id, expected)

    def read(self, repo_id: str, path: str, revision: str, repo_type: str) -> str:
        """A text file of a repository.

        Raises:
            HubError: If it can't be read.
        """

        def get() -> str:
            url = hf_hub_url(repo_id, path, repo_type=repo_type, revision=revision, endpoint=self.api.endpoint)
            response = get_session().get(url, headers=build_hf_headers(token=self.token))
            hf_raise_for_status(response)
            return response.content.decode(errors="replace")

        return self.call(get, repo_id)

    @contextmanager
    def _limited(self) -> Iterator[None]:
        """Within, the client waits for no server that is silent or busy for long, and logs no addresses."""
        client, logger = get_session(), logging.getLogger("huggingface_hub.utils._http")
        timeout, level = client.timeout, logger.level
        client.timeout = TIMEOUT_SECONDS
        client.event_hooks["response"].append(self._watch)
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
            client.event_hooks["response"].remove(self._watch)
            client.timeout = timeout

    def _watch(self, response: Any) -> None:
        """Look at an answer, before huggingface_hub does what its `Retry-After` says, whatever that is."""
        seconds = _wait_asked_for(response) if response.status_code in TRIED_AGAIN else None
        if seconds is None:
            return
        self._waited += seconds
        if self._waited > PATIENCE_SECONDS:
            raise _TooLongError(seconds)
        self.say(f"The Hub asks to wait {seconds} s (HTTP {response.status_code}).")

    def _hide(self, text: str) -> str:
        """A text in one line, without what only its owner may know."""
        text = SIGNATURE.sub("?…", text.replace(self.token, "hf_…"))
        return TOKEN.sub(r"\1_…", " ".join(text.split()))


def _wait_asked_for(response: Any) -> int | None:
    """How many seconds an answer asks to wait, as huggingface_hub reads it, and one more."""
    limit = parse_ratelimit_headers(response.headers) if response.status_code == 429 else None
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1
    seconds = response.headers.get("Retry-After", "").strip()
    return int(seconds) + 1 if seconds.isdigit() else None


def _explain(error: Exception, status: int | None, repo_id: str) -> str:
    """What happened and what to do, in one line."""
    again = "Run the same command again later: what was uploaded by now is not sent twice."
    if isinstance(error, _TooLongError):
        minutes = -(-error.args[0] // 60)
        return f"The Hub has had too many requests from you and asks to wait {minutes} min. Run the same command then."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, and publishing needs the Hub. Unset it."
    if status is None:
        said = f": {str(error)[:MAX_SAID]}" if str(error) else ""
        return f"The Hub ({constants.ENDPOINT}) can't be reached ({type(error).__name__}{said}). {again}"
    owner, said = repo_id.split("/")[0], getattr(error, "server_message", None) or ""
    lines = {
        401: f"The Hub does not accept the token. Make one that may write ({TOKENS_PAGE}), then: hf auth login",
        403: f"The token may not write to {repo_id}. Give it the right to write to what {owner} has ({TOKENS_PAGE}).",
        404: f"There is no {repo_id} on the Hub, or the token may not see it. Check the name, and the token's rights.",
        409: f"{repo_id} is being changed by somebody else. {again}",
        412: f"{repo_id} is being changed by somebody else. {again}",
        429: f"The Hub has had too many requests from you. {again}",
    }
    if status in lines:
        return f"{lines[status]} (HTTP {status}{f': {said}' if said else ''})"
    advice = again if status >= 500 or status in TRIED_AGAIN else "Mend that, then run the same command again."
    return f"The Hub answers HTTP {status}{f': {said}' if said else ''}. {advice}"
