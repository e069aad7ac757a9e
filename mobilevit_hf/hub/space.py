"""Gradio Space with a demo of a published model, including this package's source code."""

import json
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCardData, constants
from huggingface_hub.utils import validate_repo_id

from .card import CARD_MARKER, link
from .client import Hub
from .contents import CARD, Contents
from .repository import Publication, Target, make_publication, page_url

APP, REQUIREMENTS = "app.py", "requirements.txt"
MARKER = CARD_MARKER.removeprefix("<!-- ").removesuffix(" -->")
# Text below the metadata of the README that the Hub creates in a new Space.
HUB_README = "Check out the configuration reference at https://huggingface.co/docs/hub/spaces-config-reference"
PACKAGE = Path(__file__).parents[1]
SOURCES = (".py", ".pyi", ".jinja", ".css")


def publish_space(
    space_id: str,
    repo_id: str,
    *,
    private: bool | None = None,
    dry_run: bool = False,
    token: str | None = None,
    log: Callable[[str], Any] = print,
) -> Publication:
    """Create or update a Space with a demo of a published model, in one commit.

    Unchanged files are not uploaded and handwritten files are kept. A Space of a private model needs a token with read
    access as its secret HF_TOKEN.

    Args:
        space_id: Repository id of the Space, with or without the user or organization.
        repo_id: Repository id of a classifier or detector.
        private, dry_run, token, log: As for `publish`.

    Raises:
        ValueError: If the app of the Space is handwritten, or the Space is public despite `private`.
        HubError: If a request to the Hub fails. Calling again resumes the upload.
    """
    validate_repo_id(space_id)
    if dry_run:
        return make_publication(make_space(space_id, repo_id), page_url(space_id, SpaceTarget.repo_type))
    hub = Hub(token, log)
    space_id, repo_id = hub.resolve_repo_id(space_id), repo_id if "/" in repo_id else hub.resolve_repo_id(repo_id)
    return SpaceTarget(hub, space_id).publish(make_space(space_id, repo_id), private)


def make_space(space_id: str, repo_id: str) -> Contents:
    """Return the contents of a Space for a model."""
    app = f"# {MARKER}\nfrom mobilevit_hf.demo import build_app, launch\n\n"
    app += f"launch(build_app([{json.dumps(repo_id)}], fixed=True))\n"
    package = distribution("mobilevit-hf")
    dependencies = [line for line in package.requires or [] if "extra ==" not in line]
    requirements = "\n".join([f"# {MARKER}", *dependencies, f"gradio=={_gradio_version()}", ""])
    source = {path.relative_to(PACKAGE.parent).as_posix(): path for path in sorted(PACKAGE.rglob("*"))}
    files: dict[str, Path | bytes] = {
        CARD: _make_readme(space_id, repo_id).encode(),
        APP: app.encode(),
        REQUIREMENTS: requirements.encode(),
        f"{PACKAGE.name}/LICENSE": (package.read_text("licenses/LICENSE") or "").encode(),
        **{name: path for name, path in source.items() if path.suffix in SOURCES},
    }
    return Contents(files, ())


def _make_readme(space_id: str, repo_id: str) -> str:
    title = space_id.rpartition("/")[2]
    metadata = SpaceCardData(
        title=title,
        emoji="🔎",
        sdk="gradio",
        sdk_version=_gradio_version(),
        python_version="3.12",
        app_file=APP,
        models=[repo_id],
        license="apache-2.0",
    )
    page = link(repo_id, f"{constants.ENDPOINT}/{repo_id}")
    return f"---\n{metadata.to_yaml()}\n---\n{CARD_MARKER}\n\n# {title}\n\nDemo of {page}: run it on your images.\n"


def _gradio_version() -> str:
    try:
        return version("gradio")
    except PackageNotFoundError:
        return "6.31.0"


class SpaceTarget(Target):
    """The main branch of a Space."""

    repo_type, space_sdk, message = "space", "gradio", "Publish the demo"

    def select(self, contents: Contents, existing: Iterable[str]) -> list[str]:
        """Return all files, without README and requirements if those in the Space are handwritten.

        Raises:
            ValueError: If the app is handwritten.
        """
        kept = [name for name in (APP, CARD, REQUIREMENTS) if name in existing and not self._is_generated(name)]
        if APP in kept:
            raise ValueError(
                f"{self.repo_id}: got a handwritten {APP}, expected a Space without one; nothing was uploaded to it. "
                "Pass another Space, or remove that file."
            )
        for name in kept:
            self.hub.log(f"{name} of the Space {self.repo_id} is handwritten and is kept.")
        return [name for name in contents.files if name not in kept]

    def obsolete(self, contents: Contents, existing: Iterable[str]) -> list[str]:
        """Return source files of other versions of this package."""
        return sorted(name for name in existing if name.startswith(f"{PACKAGE.name}/") and name not in contents.files)

    def _is_generated(self, name: str) -> bool:
        text = self.read(name)
        return MARKER in text or text.rpartition("---")[2].strip() == HUB_README
