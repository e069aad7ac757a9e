"""Files of a training run, written so that an interruption leaves each complete or absent."""

import json
import re
import shutil
import zipfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from ..io import atomic_folder, temporary_folders, write_atomically, write_text

CHECKPOINT_FOLDER = "checkpoints"
CHECKPOINT_NAME = re.compile(r"step-\d+\.pt")
CHECKPOINT_KEYS = {
    "state", "progress", "arguments", "data", "model", "best_model", "optimizer", "ema", "scaler", "random_states",
}  # fmt: skip
# Parts of the errors of torch and safetensors on a full disk.
WRITE_ERRORS = ("PytorchStreamWriter", "file write failed", "iostream", "unexpected pos")


def save_checkpoint(output_dir: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Write a checkpoint and delete older ones, so that `keep` are left.

    Raises:
        ValueError: If it can't be written; earlier checkpoints are kept.
    """
    path = output_dir / CHECKPOINT_FOLDER / f"step-{step:08}.pt"
    with explain_full_disk(output_dir):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: torch.save(state, file))
    _remove_old(output_dir, keep)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU; no code in the file is executed.

    Raises:
        ValueError: If the file is damaged or not a checkpoint. The message is a clause that names it.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # the format of `torch.save`; torch does not compare the checksums
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} does not match")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if missing := CHECKPOINT_KEYS - {*content}:
            raise ValueError(f"it has no {min(missing)}, as one of another version of mobilevit-hf")
    except PermissionError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0] if isinstance(error, ValueError) else type(error).__name__
        raise ValueError(f"{path} is damaged or not a training checkpoint ({reason})") from error
    return content


def find_checkpoints(output_dir: Path) -> list[Path]:
    """Return the checkpoints of a run, the oldest first."""
    folder = output_dir / CHECKPOINT_FOLDER
    return sorted(path for path in folder.glob("*.pt") if CHECKPOINT_NAME.fullmatch(path.name))


def save_model(
    output_dir: Path, model: PreTrainedModel, processor: BaseImageProcessor, weights: dict[str, Tensor] | None = None
) -> None:
    """Save a model, with other weights if given, and its image processor, replacing each file atomically.

    Raises:
        ValueError: If they can't be written; the previous files are kept.
    """
    with explain_full_disk(output_dir), atomic_folder(output_dir) as scratch:
        model.save_pretrained(scratch, state_dict=weights and {**weights})  # it removes what it has written
        processor.save_pretrained(scratch)


def remove_leftovers(output_dir: Path, step: int, keep: int) -> None:
    """Delete temporary files of a killed process, checkpoints after a step, and surplus ones before it."""
    for path in find_checkpoints(output_dir):
        if int(path.stem.removeprefix("step-")) > step:  # damaged, as the run is resumed from an earlier one
            path.unlink()
    _remove_old(output_dir, keep)
    for parent in (output_dir, output_dir / CHECKPOINT_FOLDER):
        for path in temporary_folders(parent):
            shutil.rmtree(path)


def _remove_old(output_dir: Path, keep: int) -> None:
    for path in find_checkpoints(output_dir)[:-keep]:
        path.unlink()


@contextmanager
def explain_full_disk(output_dir: Path) -> Generator[None, None, None]:
    """Convert file system errors, including those that torch and safetensors wrap, to a ValueError."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not any(text in str(error) for text in WRITE_ERRORS):
            raise
        checkpoints = find_checkpoints(output_dir)
        kept = f"{checkpoints[-1]} is complete" if checkpoints else "there is no checkpoint yet"
        reason = error.__context__ if isinstance(error.__context__, OSError) else error  # wrapped by torch
        free = shutil.disk_usage(output_dir).free // 2**20 if output_dir.exists() else 0
        raise ValueError(
            f"{output_dir} can't be written ({reason}; {free} MiB free): {kept}. Free disk space, then resume with "
            "--resume auto."
        ) from error


class History:
    """Lines of `metrics.jsonl`, up to `step`: a resumed run writes later ones again."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.lines = [line for line in _read_lines(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def add(self, line: dict[str, Any]) -> None:
        """Append a line."""
        self.lines.append(line)
        with explain_full_disk(self.path.parent), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file that may be missing; damaged ones, such as an incomplete last line, are left out."""
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        with suppress(ValueError):
            if isinstance(line := json.loads(text), dict) and isinstance(line.get("step"), int):
                yield line
