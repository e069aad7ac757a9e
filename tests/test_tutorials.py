"""Commands and code of the quickstart and of the tutorials run as written, with fewer images and training steps."""

import os
import shutil
from importlib.util import find_spec

import pytest
import torch
from doc_blocks import ROOT, find_blocks, find_commands, run_command, run_python

from mobilevit_hf import builtin
from mobilevit_hf.samples import draw_smear, draw_t_shirt

NUM_IMAGES = 10


@pytest.fixture
def environment():
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture
def workspace(tmp_path, environment):
    """Folder with what the pages name: photos, the datasets that they draw, and a detector of the user."""
    draw_t_shirt().save(tmp_path / "photo.jpg")
    draw_smear().save(tmp_path / "smear.jpg")
    script = str(ROOT / "examples/draw_dataset.py")
    for name, folder in (("shirts", "shirts"), ("shirts", "photos"), ("parts", "parts"), ("streets", "streets")):
        run_python([script, name, folder, "--images", str(NUM_IMAGES)], tmp_path, environment)
    shutil.copytree(builtin("blood-cells"), tmp_path / "my-detector")
    return tmp_path


def has_packages(words):
    """Return whether the runtime of a command is installed."""
    return words[1] not in ("export", "demo") or all(map(find_spec, ("onnx", "onnxscript", "onnxruntime")))


def shorten(words):
    """Train for two steps."""
    return [*words, "--max-steps", "2"] if words[1] == "train" else words


@pytest.mark.slow
@pytest.mark.parametrize("page", ["quickstart", "classification", "detection", "segmentation"])
def test_commands_and_code_run_one_after_the_other(workspace, environment, page):
    blocks = find_blocks(f"docs/{page}.md", "bash")
    commands = [words for block in blocks for words in find_commands(block)]
    assert any(words[1] == "train" for words in commands)
    for words in filter(has_packages, commands):
        run_command(shorten(words), workspace, environment)
    for code in find_blocks(f"docs/{page}.md", "python"):
        run_python(["-c", code], workspace, environment)
