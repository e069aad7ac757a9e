"""Options of short training runs, and readers of their output."""

import json
from pathlib import Path

import yaml

from mobilevit_hf.training.callbacks import TrainerCallback
from mobilevit_hf.training.checkpoint import find_checkpoints, load_checkpoint

SCRIPTS = Path(__file__).parents[1] / "scripts"
SCRIPT_OF = {
    "image-classification": "train_classification.py",
    "object-detection": "train_detection.py",
    "image-segmentation": "train_segmentation.py",
}
MODEL_FILES = {"config.json", "model.safetensors", "preprocessor_config.json"}
SHORT = ("--max-steps", 2, "--per-device-train-batch-size", 4, "--dataloader-num-workers", 0, "--use-cpu")
SMALL = (*SHORT, "--image-size", 64)


class StepCallback(TrainerCallback):
    """Calls a function after a step, and collects the messages."""

    def __init__(self, step=None, function=None):
        self.step, self.function, self.messages = step, function, []

    def on_progress(self, progress):
        if progress.step == self.step:
            self.function()

    def on_message(self, text, kind="note"):
        self.messages.append(text)


def read_metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_results(folder):
    return json.loads((folder / "results.json").read_text())


def read_arguments(folder):
    return yaml.safe_load((folder / "recipe.yaml").read_text())


def load_last_checkpoint(folder):
    return load_checkpoint(find_checkpoints(folder)[-1])


def list_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def only_line(text):
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    return lines[0]
