"""Remove secrets from text that is printed or published."""

import os
import re

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
SECRETS = (
    (re.compile(r"(?<=://)[^\s/?#]+@"), "…@"),  # user and password of a URL
    (re.compile(r"\bBearer [!-~]+"), "Bearer …"),
    (re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{10,}"), r"\1_…"),
)
# Query of a presigned URL, which gives access by itself.
QUERY = re.compile(r"(?<=\S)\?\S+=\S+")


def redact(text: str) -> str:
    """Return a text without tokens, and without the user and password of URLs."""
    for name in TOKEN_VARIABLES:
        text = text.replace(os.environ.get(name) or "\0", "hf_…")
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


def redact_message(text: str) -> str:
    """Return the message of an error or a log line as `redact` does, also without the queries of URLs."""
    return QUERY.sub("?…", redact(text))
