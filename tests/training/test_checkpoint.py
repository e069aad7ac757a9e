"""Files of a training run: checkpoints, models and history survive interruptions."""

import json
import random
from pathlib import Path

import pytest
import torch
import transformers

import mobilevit_hf
from mobilevit_hf.io import TEMP_PREFIX
from mobilevit_hf.training.checkpoint import (
    CHECKPOINT_KEYS,
    History,
    find_checkpoints,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
    save_model,
)


def save_steps(output_dir, steps, keep=2):
    for step in steps:
        content = dict.fromkeys(CHECKPOINT_KEYS) | {"state": {"step": step}, "model": torch.full((1000,), step)}
        save_checkpoint(output_dir, step, content, keep)


def test_latest_checkpoints_are_kept(tmp_path):
    save_steps(tmp_path, [1, 2, 10, 9])
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000009.pt", "step-00000010.pt"]
    loaded = load_checkpoint(find_checkpoints(tmp_path)[-1])
    assert loaded["state"] == {"step": 10}
    assert loaded["model"].tolist() == [10] * 1000


def test_other_files_are_ignored_and_kept(tmp_path):
    save_steps(tmp_path, [5], keep=1)
    for name in ("step-1.txt", "best.pt", ".gitkeep"):
        (tmp_path / "checkpoints" / name).write_text("mine")
    save_steps(tmp_path, [6], keep=1)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        ".gitkeep",
        "best.pt",
        "step-00000006.pt",
        "step-1.txt",
    ]
    assert find_checkpoints(tmp_path / "nothing") == []


class Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_invalid_checkpoint_raises_and_executes_no_code(tmp_path):
    path = tmp_path / "step-00000001.pt"
    for write in (lambda: path.write_text("nothing"), lambda: torch.save({"a": Malicious()}, path)):
        write()
        with pytest.raises(ValueError, match=r"step-00000001\.pt is damaged or not a training checkpoint"):
            load_checkpoint(path)


def test_any_flipped_bit_raises_or_changes_nothing(tmp_path):
    """The checksums cover the content; other bytes are redundant or fill gaps."""
    save_steps(tmp_path, [7])
    (path,) = find_checkpoints(tmp_path)
    content, rng = path.read_bytes(), random.Random(0)
    start = content.index(torch.full((1000,), 7).numpy().tobytes())
    positions = [start, start + 3999, 0, len(content) - 1, *(rng.randrange(len(content)) for _ in range(100))]
    damaged = 0
    for position in positions:
        flipped = bytes([content[position] ^ 1 << rng.randrange(8)])
        path.write_bytes(content[:position] + flipped + content[position + 1 :])
        try:
            loaded = load_checkpoint(path)
        except ValueError:
            damaged += 1
        else:
            assert start > position or position >= start + 4000
            assert loaded["model"].tolist() == [7] * 1000
            assert loaded["state"] == {"step": 7}
    assert damaged > 50


@pytest.mark.parametrize("size", [0, 1, 2000])
def test_truncated_checkpoint_raises(size, tmp_path):
    save_steps(tmp_path, [7])
    (path,) = find_checkpoints(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"step-00000007\.pt is damaged"):
        load_checkpoint(path)


def test_failed_save_keeps_previous_model(tiny_model, checkpoints, tmp_path, monkeypatch):
    model = tiny_model(mobilevit_hf.MobileViTForImageClassification)
    processor = transformers.AutoImageProcessor.from_pretrained(checkpoints["image-classification"])
    save_model(tmp_path, model, processor)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    monkeypatch.setattr(type(processor), "save_pretrained", lambda *args: Path("/nothing/here").write_text(""))
    with pytest.raises(ValueError, match=r"can't be written .*there is no checkpoint yet\. Free disk space"):
        save_model(tmp_path, model, processor)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_save_keeps_the_weights_in_memory(tiny_model, checkpoints, tmp_path):
    """The next checkpoint stores the best weights again."""
    model = tiny_model(mobilevit_hf.MobileViTForImageClassification)
    processor = transformers.AutoImageProcessor.from_pretrained(checkpoints["image-classification"])
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    save_model(tmp_path, model, processor, weights)
    assert weights.keys() == model.state_dict().keys()


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    save_steps(tmp_path, [1, 2, 3], keep=9)
    kept = [".gitignore", "notes.txt", ".settings/a.txt", "checkpoints/.hidden", ".scratch-mine/a.txt"]
    leftovers = [f"{TEMP_PREFIX}abc/model.safetensors", f"checkpoints/{TEMP_PREFIX}12/step-00000004.pt"]
    for name in kept + leftovers:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path, 3, 2)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {*kept, "checkpoints/step-00000002.pt", "checkpoints/step-00000003.pt"}
    assert not list(tmp_path.rglob(f"{TEMP_PREFIX}*"))


def test_checkpoints_after_the_resumed_step_are_removed(tmp_path):
    save_steps(tmp_path, [1, 2, 3], keep=9)
    remove_leftovers(tmp_path, 2, 9)
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000001.pt", "step-00000002.pt"]


def test_history_continues_from_a_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    history = History(path, 0)
    for step in (2, 4, 4, 6):
        history.add({"step": step, "loss": step / 10})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # incomplete, as left by a killed process
    history = History(path, 4)
    assert [line["step"] for line in history.lines] == [2, 4, 4]
    history.add({"step": 5, "loss": 0.5})
    assert [json.loads(line) for line in path.read_text().splitlines()] == history.lines
    assert [line["step"] for line in history.lines] == [2, 4, 4, 5]
