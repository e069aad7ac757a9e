"""The options, defaults and recipes in docs/training.md are those of the code."""

import dataclasses
import re
from pathlib import Path

import pytest
from option_tables import PAGE, TASK_TITLES, render_page

from mobilevit_hf.training.arguments import DEFAULT_LENGTH, FROM_SCRATCH_LENGTH_FACTOR, TrainArguments, read_recipe

ROOT = Path(__file__).parents[1]
TEXT = PAGE.read_text(encoding="utf-8")
RECIPES = sorted((ROOT / "scripts/recipes").glob("*.yaml"))


def test_option_tables_are_current():
    assert render_page(TEXT) == TEXT, "Run: python tests/option_tables.py"


def test_tables_have_each_option_once():
    options = re.findall(r"^\| `--(?:\[no-\])?([\w-]+)` \|", TEXT, re.MULTILINE)
    assert sorted(options) == sorted(
        field.name.replace("_", "-") for field in dataclasses.fields(TrainArguments) if field.name != "data"
    )


def test_options_in_text_and_commands_exist():
    names = {field.name.replace("_", "-") for field in dataclasses.fields(TrainArguments)}
    names |= {"recipe", "help", "split", "save", "nproc-per-node"}
    assert set(re.findall(r"--([a-z][\w-]+)", TEXT)) <= names


def test_default_lengths_are_documented():
    for task, (epochs, steps) in DEFAULT_LENGTH.items():
        assert f"| {TASK_TITLES[task]} | {epochs} epochs, at least {steps} steps | " in TEXT
        factor = FROM_SCRATCH_LENGTH_FACTOR
        assert f"| {factor * epochs} epochs, at least {factor * steps} steps |" in TEXT


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_documented_and_valid(path):
    variants = re.sub(r"-(xxs|xs|s)$", "-{xxs,xs,s}", path.stem)
    assert f"`{variants}.yaml`" in TEXT
    TrainArguments.from_dict(read_recipe(path))
