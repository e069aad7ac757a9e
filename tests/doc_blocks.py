"""Fenced code blocks of the documentation, and processes that run them."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def find_blocks(page: str, language: str) -> list[str]:
    """Return the fenced code blocks of a page in a language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for name, block in fenced if name == language]


def find_commands(block: str) -> list[list[str]]:
    """Return the words of each `mobilevit` command of a block in bash."""
    parts = [part.strip() for line in block.replace("\\\n", " ").splitlines() for part in line.split(" && ")]
    return [shlex.split(part, comments=True) for part in parts if part.startswith("mobilevit ")]


def run_command(words: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Run a `mobilevit` command in a folder; return its output."""
    assert words[0] == "mobilevit"
    return run_python(["-m", "mobilevit_hf", *words[1:]], folder, environment)


def run_python(arguments: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Run Python in a folder; return the output."""
    process = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, f"{arguments}\n{process.stderr}"
    return process.stdout
