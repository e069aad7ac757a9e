"""Trainings of a few steps: how they are asked for, who is told, and what they leave."""

import json
from pathlib import Path

import yaml

from mobilevit_hf.training.checkpoint import find_checkpoints, load_checkpoint
from mobilevit_hf.training.state import Listener

SCRIPTS = Path(__file__).parents[1] / "scripts"
SCRIPT_OF = {"image-classification": "train_classification.py", "object-detection": "train_detection.py"}
MODEL_FILES = {"config.json", "model.safetensors", "preprocessor_config.json"}
SHORT = ("--max-steps", 2, "--per-device-train-batch-size", 4, "--dataloader-num-workers", 0, "--use-cpu")
SMALL = (*SHORT, "--image-size", 64)


class AtStep(Listener):
    """Does something after a step, and notes what it is told."""

    def __init__(self, step=None, do=None):
        self.step, self.do, self.said = step, do, []

    def update(self, status):
        if status.step == self.step:
            self.do()

    def say(self, text, kind="note"):
        self.said.append(text)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def arguments_of(folder):
    return yaml.safe_load((folder / "recipe.yaml").read_text())


def state_of(folder):
    return load_checkpoint(find_checkpoints(folder)[-1])


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def only_line(text):
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    return lines[0]
