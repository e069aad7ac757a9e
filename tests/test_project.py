"""The versions that CI installs and the actions that it runs are pinned."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))  # not in the source distribution


def normalize(name):
    return re.sub(r"[-_.]+", "-", name.lower())


def test_constraints_pin_each_direct_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    # The extra test includes serve.
    required = [*project["dependencies"], *extras["test"], *extras["serve"], *extras["docs"], *extras["dev"]]
    names = {normalize(re.match(r"[\w.-]+", requirement)[0]) for requirement in required}
    pins = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert names - {normalize(project["name"])} <= set(pins)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_hash(path):
    """A tag of an action can be moved to other code, which would run with the permissions of the job."""
    actions = re.findall(r"uses: (?!\./)(.+)", path.read_text(encoding="utf-8"))
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", action) for action in actions), actions
