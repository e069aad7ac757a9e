"""Hub client: retries of single requests, and errors in one line without tokens."""

import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, get_session, get_token, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, parse_ratelimit_headers

from ..redaction import redact_message

T = TypeVar("T")

RETRIED_STATUSES = (408, 429, 500, 502, 503, 504)
WAIT_SECONDS = (1, 2, 4, 8)
# Longest time for one step, retries included; the Hub's rate limits are per 300 seconds.
MAX_SECONDS = 330
# For reads, which huggingface_hub would wait for without limit.
TIMEOUT_SECONDS = 60
TOKENS_PAGE = "https://huggingface.co/settings/tokens"
MAX_REASON = 200


class HubError(OSError):
    """A failed request to the Hub, in one line; `status` is the HTTP status, None without a response."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Hub:
    """An `HfApi` whose requests are retried, with a log line before each retry, and whose errors are `HubError`.

    huggingface_hub retries uploads only: creating a repository, reading it and committing are single requests there.
    """

    def __init__(self, token: str | None, log: Callable[[str], Any]) -> None:
        self.token, self.log = token or get_token() or "", log
        if not self.token:
            raise HubError(f"Not signed in to the Hub. Run: hf auth login (with a token from {TOKENS_PAGE})")
        if not re.fullmatch(r"[!-~]+", self.token):  # the HTTP client would quote it in its error
            raise HubError("The token contains invalid characters. Copy it again, then run: hf auth login")
        self.api = HfApi(token=self.token)

    def resolve_repo_id(self, name: str) -> str:
        """Return the full id of a repository, given with or without its owner, to which the token may write.

        Raises:
            HubError: If the token may not write there.
        """
        user = self.call(self.api.whoami, name)
        roles = {user["name"]: "admin"} | {org.get("name"): org.get("roleInOrg") for org in user.get("orgs", [])}
        owner = name.split("/")[0] if "/" in name else user["name"]
        role = (user.get("auth") or {}).get("accessToken", {}).get("role")
        if role == "read":
            raise HubError(
                f"The token is read-only. Create one with write access ({TOKENS_PAGE}), then: hf auth login"
            )
        # The rights of a fine-grained token are not in the response.
        if roles.get(owner) == "read" or (owner not in roles and role == "write"):
            raise HubError(
                f"{user['name']} may not write to {owner}. Publish to {user['name']}/{name.split('/')[-1]}, or join "
                f"{owner} with write access."
            )
        return name if "/" in name else f"{owner}/{name}"

    def call(self, request: Callable[[], T], repo_id: str, expected: tuple[type[Exception], ...] = ()) -> T:
        """Send an idempotent request to a repository, with retries of temporary errors.

        Raises:
            HubError: If it fails, or would wait beyond `MAX_SECONDS`; `expected` errors are raised unchanged.
        """
        deadline = time.monotonic() + MAX_SECONDS
        for wait in (*WAIT_SECONDS, None):
            try:
                return request()
            except expected:
                raise
            except (HTTPError, ConnectionError, TimeoutError, RuntimeError) as raised:
                # huggingface_hub wraps errors of an LFS upload in a RuntimeError; xet raises one by itself.
                error = raised.__cause__ or raised if isinstance(raised, RuntimeError) else raised
                response = error.response if isinstance(error, HfHubHTTPError) else None
                status, requested = (
                    (None, None) if response is None else (response.status_code, _requested_wait(response))
                )
                retried = status in RETRIED_STATUSES if status else not isinstance(error, OfflineModeIsEnabled)
                if wait is None or not retried or time.monotonic() + (requested or 0) > deadline:
                    # Not `from error`, whose text may contain a token or a presigned URL.
                    raise HubError(self._redact(_explain(error, status, requested, repo_id)), status) from None
                wait = requested or wait
                reason = f"returned HTTP {status}" if status else "can't be reached"
                self.log(f"The Hub {reason}. Retrying in {wait} s.")
                time.sleep(wait)
        raise AssertionError

    def info(self, repo_id: str, repo_type: str, revision: str | None, *expected: type[Exception]) -> Any:
        """Return the `HfApi.repo_info` of a repository; errors as in `call`."""
        return self.call(
            lambda: self.api.repo_info(repo_id, revision=revision, repo_type=repo_type, timeout=TIMEOUT_SECONDS),
            repo_id,
            expected,
        )

    def read(self, repo_id: str, path: str, revision: str | None, repo_type: str) -> str:
        """Return a text file of a repository, without caching it; errors as in `call`."""
        url = hf_hub_url(repo_id, path, repo_type=repo_type, revision=revision, endpoint=self.api.endpoint)

        def get() -> str:
            response = get_session().get(url, headers=build_hf_headers(token=self.token), timeout=TIMEOUT_SECONDS)
            hf_raise_for_status(response)
            return response.content.decode(errors="replace")

        return self.call(get, repo_id)

    def _redact(self, text: str) -> str:
        """Return a text in one line, without secrets."""
        return redact_message(" ".join(text.replace(self.token, "hf_…").split()))


def _requested_wait(response: Any) -> int | None:
    """Return the wait that a response requests, in seconds, plus one against rounding as in huggingface_hub."""
    limit = parse_ratelimit_headers(response.headers) if response.status_code == 429 else None
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1
    seconds = response.headers.get("Retry-After", "").strip()
    return int(seconds) + 1 if seconds.isdigit() else None


def _explain(error: BaseException, status: int | None, requested: int | None, repo_id: str) -> str:
    """Return the reason of an error and what to do."""
    retry = "Run the same command again later. Uploaded files are not sent again."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, but publishing needs the Hub. Unset it."
    if status is None:
        reason = f": {str(error)[:MAX_REASON]}" if str(error) else ""
        return f"The Hub ({constants.ENDPOINT}) can't be reached ({type(error).__name__}{reason}). {retry}"
    if status == 429 and requested:
        retry = f"Run the same command again in {-(-requested // 60)} min."
    owner, reason = repo_id.split("/")[0], getattr(error, "server_message", None)
    reason = f": {reason}" if reason else ""
    messages = {
        401: f"The Hub rejected the token. Create one with write access ({TOKENS_PAGE}), then: hf auth login",
        403: f"The token may not write to {repo_id}. Give it write access to the repositories of {owner} "
        f"({TOKENS_PAGE}).",
        404: f"{repo_id} does not exist, or the token has no access. Check the name and the token.",
        409: f"{repo_id} was changed by another commit. {retry}",
        412: f"{repo_id} was changed by another commit. {retry}",
        429: f"Too many requests to the Hub. {retry}",
    }
    if status in messages:
        return f"{messages[status]} (HTTP {status}{reason})"
    advice = retry if status >= 500 or status in RETRIED_STATUSES else "Fix that, then run the same command again."
    return f"The Hub returned HTTP {status}{reason}. {advice}"
