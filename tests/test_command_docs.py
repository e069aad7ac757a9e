"""Commands in fences of the documentation have subcommands and options that exist."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from mobilevit_hf.cli import COMMANDS, app

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def find_commands(text):
    """Return the words of each `mobilevit` command in the fences of a page without a language or in bash."""
    blocks = re.findall(r"^ *```(?:bash)?\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r"&&|\|", line)]
    commands = [re.sub(r"^(?:\w+=\S*(?:\(.*?\)\)?)? +)+", "", part) for part in parts]
    return [shlex.split(each, comments=True) for each in commands if re.match(r"mobilevit [a-z]", each)]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_of_page_exist(page):
    group = get_command(app)
    for _, name, *words in find_commands(page.read_text(encoding="utf-8")):
        assert name in COMMANDS, name
        command = group.get_command(None, name)
        known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
        used = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert used <= {*known, "--help", "-h"}, (name, used - known)
