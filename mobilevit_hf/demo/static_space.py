"""Static Space with a demo of a published model: the page and the exported model, without a server."""

from collections.abc import Callable
from typing import Any

from huggingface_hub.utils import validate_repo_id

from ..hub.client import Hub
from ..hub.contents import CARD, Contents
from ..hub.repository import Publication, make_publication, page_url
from ..hub.space import INDEX, SpaceTarget, make_readme
from .static_page import StaticPage

# Allow threads in WebAssembly.
HEADERS = {
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "cross-origin",
}


def publish_static_space(
    space_id: str,
    repo_id: str,
    page: StaticPage,
    *,
    private: bool | None = None,
    dry_run: bool = False,
    token: str | None = None,
    log: Callable[[str], Any] = print,
) -> Publication:
    """Create or update a static Space with the page of a published model, in one commit.

    Unchanged files are not uploaded and handwritten files are kept. The model is part of the Space, so the page needs
    no access to its repository.

    Args:
        space_id: Repository id of the Space, with or without the user or organization.
        repo_id: Repository id of the model.
        page: Page of the model.
        private, dry_run, token, log: As for `hub.publish`.

    Raises:
        ValueError: If the page in the Space is handwritten, or the Space is public despite `private`.
        HubError: If a request to the Hub fails. Calling again resumes the upload.
    """
    validate_repo_id(space_id)
    if dry_run:
        return make_publication(_make_space(space_id, repo_id, page), page_url(space_id, StaticTarget.repo_type))
    hub = Hub(token, log)
    space_id, repo_id = hub.resolve_repo_id(space_id), repo_id if "/" in repo_id else hub.resolve_repo_id(repo_id)
    return StaticTarget(hub, space_id).publish(_make_space(space_id, repo_id, page), private)


def _make_space(space_id: str, repo_id: str, page: StaticPage) -> Contents:
    readme = make_readme(space_id, repo_id, sdk="static", app_file=INDEX, custom_headers=HEADERS)
    return Contents({CARD: readme.encode(), **page.render(repo_id)}, ())


class StaticTarget(SpaceTarget):
    """The main branch of a static Space."""

    space_sdk = "static"
