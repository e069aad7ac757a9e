"""What a training keeps on disk: files that are whole or not there, whatever happens while they are written."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import BaseImageProcessor, PreTrainedModel

from ..io import SCRATCH, put_in_place, write_text, write_whole

CHECKPOINT_FOLDER = "checkpoints"
CHECKPOINT_NAME = re.compile(r"step-(\d+)\.pt")


def save_checkpoint(run: Path, step: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write all that a training needs to go on, and delete older checkpoints.

    Args:
        run: The folder of the training.
        step: How many steps the model has been trained.
        state: Tensors, numbers and text, in dicts and lists.
        keep: How many checkpoints to keep, this one among them.

    Raises:
        ValueError: If it can't be written; those before are still there.
    """
    folder = run / CHECKPOINT_FOLDER
    path = folder / f"step-{step:08}.pt"
    with explain_full_disk(run):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: torch.save(dict(state), file))
    _remove_old(run, keep)
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote.

    Raises:
        ValueError: If it is something else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} is no checkpoint of a training ({type(error).__name__}). Remove it, and --resume auto goes on "
            "from the one before."
        ) from error


def find_checkpoints(run: Path) -> list[Path]:
    """Those of a training, the oldest first."""
    return sorted(path for path in (run / CHECKPOINT_FOLDER).glob("*.pt") if CHECKPOINT_NAME.fullmatch(path.name))


def save_model(run: Path, model: PreTrainedModel, processor: BaseImageProcessor) -> None:
    """Put a model and its image processor into a folder, each file in one move.

    Raises:
        ValueError: If it can't be written; what was there before still is.
    """
    with explain_full_disk(run), put_in_place(run) as scratch:
        model.save_pretrained(scratch)
        processor.save_pretrained(scratch)


def tidy(run: Path, keep: int) -> None:
    """Delete what a process that was killed had begun to write, or had not yet deleted.

    Args:
        run: The folder of the training.
        keep: How many checkpoints to keep.
    """
    _remove_old(run, keep)
    for path in run.rglob(f"{SCRATCH}*"):
        shutil.rmtree(path)


def _remove_old(run: Path, keep: int) -> None:
    for path in find_checkpoints(run)[:-keep]:
        path.unlink()


@contextmanager
def explain_full_disk(run: Path) -> Iterator[None]:
    """An error of the disk says what is still there, and how to go on.

    Raises:
        ValueError: For any error of the file system, also where torch or safetensors hide it.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not _is_write_error(error):
            raise
        whole = find_checkpoints(run)
        kept = f"{whole[-1]} is whole" if whole else "there is no checkpoint yet"
        reason = error.__context__ if isinstance(error.__context__, OSError) else error  # torch hides it
        free = shutil.disk_usage(run).free // 2**20 if run.exists() else 0
        raise ValueError(
            f"{run} can't be written ({reason}; {free} MiB are free): {kept}. Make room, then go on with "
            "--resume auto."
        ) from error


def _is_write_error(error: RuntimeError) -> bool:
    return any(
        word in str(error) for word in ("PytorchStreamWriter", "file write failed", "iostream", "unexpected pos")
    )


class History:
    """The lines of `metrics.jsonl`: what was measured, by step.

    Args:
        path: The file.
        step: Lines after this step are dropped: a training that goes on from there makes them anew.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.lines = [line for line in _read_lines(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def add(self, line: dict[str, Any]) -> None:
        """Append a line, which has a `step`."""
        self.lines.append(line)
        with explain_full_disk(self.path.parent), self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file that may not be there, or end in the middle of one."""
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            yield json.loads(text)
        except ValueError:
            return
