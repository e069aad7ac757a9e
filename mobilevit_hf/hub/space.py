"""A page on the Hub where anybody can try a published model: a Gradio Space, with this package's source in it."""

import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCardData, constants
from huggingface_hub.utils import validate_repo_id

from .card import CARD_MARKER
from .client import Hub
from .contents import CARD, Contents
from .repository import Publication, Target, is_same, page_url, publication_of

APP, REQUIREMENTS = "app.py", "requirements.txt"
MARKER = CARD_MARKER.removeprefix("<!-- ").removesuffix(" -->")
# Of the README that the Hub writes into a new Space, below its front matter.
HUB_README = "Check out the configuration reference at https://huggingface.co/docs/hub/spaces-config-reference"
PACKAGE, DISTRIBUTION = Path(__file__).parents[1], "mobilevit-hf"
SOURCES = (".py", ".pyi", ".jinja")
# Where nothing is installed that says another.
GRADIO = "6.31.0"
PYTHON = "3.12"


def publish_space(
    space_id: str,
    repo_id: str,
    *,
    private: bool | None = None,
    dry_run: bool = False,
    token: str | None = None,
    say: Callable[[str], Any] = print,
) -> Publication:
    """Make a Space that shows a published model, or bring it up to date, in one commit.

    What is the same already is not sent, and what somebody wrote by hand stays. A Space for a private model needs a
    token that may read it, as its secret HF_TOKEN.

    Args:
        space_id: Its name on the Hub, with or without the user or organization in front.
        repo_id: The model's, a classifier or a detector.
        private, dry_run, token, say: As for `publish`.

    Raises:
        ValueError: If the Space is somebody's own, or public and was to be private.
        HubError: If the Hub can't be reached or refuses; the same call goes on where this one ended.
    """
    validate_repo_id(space_id)
    if dry_run:
        return publication_of(make_space(space_id, repo_id), page_url(space_id, SpaceTarget.repo_type), None, ())
    hub = Hub(token, say)
    space_id, repo_id = hub.find_repo_id(space_id), repo_id if "/" in repo_id else hub.find_repo_id(repo_id)
    contents = make_space(space_id, repo_id)
    target = SpaceTarget(hub, space_id, constants.DEFAULT_REVISION)
    target.prepare(private)
    commit, deleted = target.update(contents)
    return publication_of(contents, target.url, commit, deleted)


def make_space(space_id: str, repo_id: str) -> Contents:
    """The files of a Space for a model."""
    paths = sorted(path for path in PACKAGE.rglob("*") if path.suffix in SOURCES)
    names = {path: path.relative_to(PACKAGE.parent) for path in paths}
    source = {name.as_posix(): path for path, name in names.items() if name.parts[1] != "assets"}
    app = f"# {MARKER}\nfrom mobilevit_hf.demo import build_app, launch\n\n"
    app += f"launch(build_app([{json.dumps(repo_id)}], fixed=True))\n"
    needed = [line for line in distribution(DISTRIBUTION).requires or [] if "extra ==" not in line]
    requirements = "\n".join([f"# {MARKER}", *needed, f"gradio=={_gradio_version()}", ""])
    license_text = distribution(DISTRIBUTION).read_text("licenses/LICENSE") or ""
    files: dict[str, Path | bytes] = {
        CARD: _make_readme(space_id, repo_id).encode(),
        APP: app.encode(),
        REQUIREMENTS: requirements.encode(),
        f"{PACKAGE.name}/LICENSE": license_text.encode(),
        **source,
    }
    return Contents(files, ())


def _make_readme(space_id: str, repo_id: str) -> str:
    title = space_id.rpartition("/")[2]
    facts = SpaceCardData(
        title=title,
        emoji="🔎",
        sdk="gradio",
        sdk_version=_gradio_version(),
        python_version=PYTHON,
        app_file=APP,
        models=[repo_id],
        license="apache-2.0",
    )
    link = f"[{repo_id}]({constants.ENDPOINT}/{repo_id})"
    return f"---\n{facts.to_yaml()}\n---\n{CARD_MARKER}\n\n# {title}\n\nTry {link} on your photos.\n"


def _gradio_version() -> str:
    try:
        return version("gradio")
    except PackageNotFoundError:
        return GRADIO


class SpaceTarget(Target):
    """The main branch of a Space."""

    repo_type, new, message = "space", {"space_sdk": "gradio"}, "Show the model"

    def choose(self, contents: Contents, head: dict[str, Any]) -> list[str]:
        """All files, but a README and requirements that somebody wrote.

        Raises:
            ValueError: If the program is somebody's.
        """
        theirs = [name for name in (APP, CARD, REQUIREMENTS) if not self._is_ours(name, contents, head)]
        if APP in theirs:
            raise ValueError(
                f"{self.repo_id} has an {APP} that this command did not write, and nothing of the page was sent. "
                "Give another Space, or remove that file."
            )
        for name in theirs:
            self.hub.say(f"{name} of the Space {self.repo_id} was not written by this command, and is kept.")
        return [name for name in contents.files if name not in theirs]

    def obsolete(self, contents: Contents, head: dict[str, Any]) -> list[str]:
        """What another version of this package had."""
        return [name for name in head if name.startswith(f"{PACKAGE.name}/") and name not in contents.files]

    def _is_ours(self, name: str, contents: Contents, head: dict[str, Any]) -> bool:
        if name not in head or is_same(contents.read(name), head[name]):
            return True
        text = self.read(name)
        return MARKER in text or text.rpartition("---")[2].strip() == HUB_README
