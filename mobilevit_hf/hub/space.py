"""Spaces with a demo of a published model; a Gradio Space includes this package's source code."""

import json
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from huggingface_hub import RepoCard, SpaceCardData, constants
from huggingface_hub.utils import validate_repo_id

from .card import CARD_MARKER, link
from .client import Hub
from .contents import CARD, Contents
from .repository import Publication, Target, make_publication, page_url

APP, REQUIREMENTS = "app.py", "requirements.txt"  # of a Gradio Space
INDEX = "index.html"  # of a static Space
MARKER = CARD_MARKER.removeprefix("<!-- ").removesuffix(" -->")
# Text below the metadata of the README that the Hub creates in a new Space, and the title of its page of a static one.
HUB_README = "Check out the configuration reference at https://huggingface.co/docs/hub/spaces-config-reference"
HUB_INDEX = "Welcome to your static Space!"
# In the page of a static Space.
PAGE_MARKER = '<meta name="generator" content="mobilevit demo --static">'
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
    """Create or update a Gradio Space with a demo of a published model, in one commit.

    Unchanged files are not uploaded and handwritten files are kept. A Space of a private model needs a token with read
    access as its secret HF_TOKEN.

    Args:
        space_id: Repository id of the Space, with or without the user or organization.
        repo_id: Repository id of the model.
        private, dry_run, token, log: As for `publish`.

    Raises:
        ValueError: If the app of the Space is handwritten, or the Space is public despite `private`.
        HubError: If a request to the Hub fails. Calling again resumes the upload.
    """
    validate_repo_id(space_id)
    if dry_run:
        return make_publication(make_space(space_id, repo_id), page_url(space_id, GradioTarget.repo_type))
    hub = Hub(token, log)
    space_id, repo_id = hub.resolve_repo_id(space_id), repo_id if "/" in repo_id else hub.resolve_repo_id(repo_id)
    return GradioTarget(hub, space_id).publish(make_space(space_id, repo_id), private)


def make_space(space_id: str, repo_id: str) -> Contents:
    """Return the contents of a Gradio Space for a model."""
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
    sdk = {"sdk": "gradio", "sdk_version": _gradio_version(), "python_version": "3.12", "app_file": APP}
    return make_readme(space_id, repo_id, license="apache-2.0", **sdk)  # of this package


def make_readme(space_id: str, repo_id: str, **metadata: Any) -> str:
    """Return the README of a Space with a demo of a model; `metadata` has the fields of its SDK."""
    title = space_id.rpartition("/")[2]
    data = SpaceCardData(title=title, emoji="🔎", models=[repo_id], **metadata)
    page = link(repo_id, f"{constants.ENDPOINT}/{repo_id}")
    return f"---\n{data.to_yaml()}\n---\n{CARD_MARKER}\n\n# {title}\n\nDemo of {page}: run it on your images.\n"


def _gradio_version() -> str:
    try:
        return version("gradio")
    except PackageNotFoundError:
        return "6.31.0"


class SpaceTarget(Target):
    """The main branch of a Space. Handwritten files are kept."""

    repo_type, message = "space", "Publish the demo"
    markers = (MARKER, PAGE_MARKER, HUB_INDEX)  # texts of generated files

    def select(self, contents: Contents, existing: Iterable[str]) -> list[str]:
        """Return all files, without README and requirements if those in the Space are handwritten.

        Raises:
            ValueError: If the app is handwritten, or the README is and names another SDK.
        """
        kept = [name for name in (APP, INDEX, CARD, REQUIREMENTS) if name in existing and not self._is_generated(name)]
        if apps := [name for name in (APP, INDEX) if name in kept]:
            raise ValueError(
                f"{self.repo_id}: got a handwritten {apps[0]}, expected a Space without one; nothing was uploaded to "
                "it. Pass another Space, or remove that file."
            )
        if CARD in kept:
            sdk = RepoCard(self.read(CARD), ignore_metadata_errors=True).data.get("sdk")
            if sdk != self.space_sdk:
                raise ValueError(
                    f"{self.repo_id}: got sdk {sdk} in a handwritten {CARD}, expected {self.space_sdk}; nothing was "
                    "uploaded to it. Change it, or pass another Space."
                )
        self.kept = kept
        for name in (name for name in kept if name in contents.files):
            self.hub.log(f"{name} of the Space {self.repo_id} is handwritten and is kept.")
        return [name for name in contents.files if name not in kept]

    def obsolete(self, contents: Contents, existing: Iterable[str]) -> list[str]:
        """Return the generated files of a Gradio Space that are not part of the contents."""
        names = [name for name in existing if name in (APP, REQUIREMENTS) or name.startswith(f"{PACKAGE.name}/")]
        return sorted(name for name in names if name not in contents.files and name not in self.kept)

    def _is_generated(self, name: str) -> bool:
        text = self.read(name)
        return any(marker in text for marker in self.markers) or text.rpartition("---")[2].strip() == HUB_README


class GradioTarget(SpaceTarget):
    """The main branch of a Gradio Space."""

    space_sdk = "gradio"
