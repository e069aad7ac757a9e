"""The parts of a training: average, learning rate, optimizer, files, sizes of images, weights of classes."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import mobilevit_hf
from mobilevit_hf.io import write_text, write_whole
from mobilevit_hf.training.checkpoint import (
    History,
    find_checkpoints,
    load_checkpoint,
    save_checkpoint,
    save_model,
    tidy,
)
from mobilevit_hf.training.data import batch_shapes
from mobilevit_hf.training.ema import EMA
from mobilevit_hf.training.optimization import Schedule, make_optimizer
from mobilevit_hf.training.tasks import balanced_weights

# --- the average -----------------------------------------------------------------------------------------------------


def small_network():
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(5, 2))


def walk(model, steps, seed=0):
    """Change all that a model holds, as training would; yields after each step."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        with torch.no_grad():
            for value in model.state_dict().values():
                value += torch.randn(value.shape, generator=generator) if value.is_floating_point() else 1
        yield


def copy_of(state):
    return {name: value.clone() for name, value in state.items()}


def test_the_average_follows_the_official_one(reference_data):
    arrays = np.load(reference_data / "reference" / "train_ema.npz")

    def state(prefix):
        names = [name for name in arrays.files if name.startswith(f"{prefix}/")]
        return {name.partition("/")[2]: torch.from_numpy(arrays[name]) for name in names}

    model = small_network()
    model.load_state_dict(state("model_step0"))
    ema = EMA(model, 1 - 5e-4, warmup=False)
    for step in range(1, 6):
        model.load_state_dict(state(f"model_step{step}"))
        ema.update()
        averages = ema.state_dict()["averages"]
        expected = state(f"ema_step{step}")
        assert list(averages) == list(expected)
        for name, value in expected.items():
            if value.is_floating_point():
                torch.testing.assert_close(averages[name], value, rtol=2e-6, atol=1e-7)
        # The official one averages counters too and cuts them to whole numbers, so that it never counts.
        assert averages["1.num_batches_tracked"] == model[1].num_batches_tracked


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_that_of_a_loop(warmup):
    model = small_network()
    ema = EMA(model, 0.9, warmup=warmup)
    expected = {name: value.double() for name, value in model.state_dict().items()}
    for number, _ in enumerate(walk(model, 120), 1):
        ema.update()
        decay = min(0.9, (1 + number) / (10 + number)) if warmup else 0.9
        for name, value in model.state_dict().items():
            old = expected[name]
            expected[name] = decay * old + (1 - decay) * value if value.is_floating_point() else value.double()
    for name, value in ema.state_dict()["averages"].items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-5)


def test_the_model_is_the_average_for_a_while():
    model = small_network()
    ema = EMA(model, 0.9)
    for _ in walk(model, 3):
        ema.update()
    before, pointers = copy_of(model.state_dict()), [value.data_ptr() for value in model.state_dict().values()]
    averages = copy_of(ema.state_dict()["averages"])
    with ema.swap():
        assert all(torch.equal(value, averages[name]) for name, value in model.state_dict().items())
        assert not torch.equal(model[0].weight, before["0.weight"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(RuntimeError, match="in between"), ema.swap():
        raise RuntimeError("in between")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, averages[name]) for name, value in ema.state_dict()["averages"].items())
    assert [value.data_ptr() for value in model.state_dict().values()] == pointers


def test_a_saved_average_goes_on_as_if_nothing_had_happened():
    model, other = small_network(), small_network()
    ema = EMA(model, 0.9)
    for _ in walk(model, 3):
        ema.update()
    file = io.BytesIO()
    torch.save([model.state_dict(), ema.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    other_ema = EMA(other, 0.9)
    other.load_state_dict(weights)
    other_ema.load_state_dict(state)
    for _ in zip(walk(model, 4, seed=1), walk(other, 4, seed=1), strict=True):
        ema.update()
        other_ema.update()
    ours, theirs = other_ema.state_dict(), ema.state_dict()
    assert ours["num_updates"] == theirs["num_updates"] == 7
    assert all(torch.equal(value, theirs["averages"][name]) for name, value in ours["averages"].items())


# --- the learning rate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cls", "det"])
def test_the_learning_rate_is_the_official_one(name, reference_data):
    recipe = json.loads((reference_data / "reference" / "train_lr.json").read_text())[name]
    settings = recipe["settings"]
    highest = settings["max_lr"]
    schedule = Schedule(
        highest,
        min_lr_rate=settings["min_lr"] / highest,
        warmup_steps=settings["warmup_iterations"],
        warmup_lr_rate=settings["warmup_init_lr"] / highest,
    )
    assert len(recipe["points"]) > 10
    for point in recipe["points"]:
        ours = schedule(point["curr_iter"], point["epoch"] / settings["period"])
        assert ours == pytest.approx(point["lr"], rel=1e-9), point


def test_the_learning_rate_warms_up_for_a_share_of_the_training():
    schedule = Schedule(2.0, min_lr_rate=0.1, warmup_steps=0.2, warmup_lr_rate=0.25)
    assert [schedule(0, 0.0), schedule(77, 0.1), schedule(0, 0.15)] == pytest.approx([0.5, 1.25, 1.625])
    for progress in (0.3, 0.5, 0.8):
        assert schedule(0, progress) == pytest.approx(0.2 + 0.9 * (1 + math.cos(math.pi * progress)))
    assert schedule(10**6, 1.0) == schedule(10**6, 1.3) == pytest.approx(0.2)
    assert Schedule(2.0)(0, 0.0) == 2
    assert Schedule(2.0)(0, 1.0) == pytest.approx(0)


# --- the optimizer ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tiny_model, detector):
    return {
        "classifier": tiny_model(mobilevit_hf.MobileViTForImageClassification),
        "detector": mobilevit_hf.MobileViTSSDLiteForObjectDetection.from_pretrained(detector),
    }


def names_that_shrink(model, **options):
    """The parameters that a step of the optimizer without gradients changes, and those that it leaves."""
    optimizer = make_optimizer(model, learning_rate=0.1, weight_decay=0.5, **options)
    before = copy_of(dict(model.named_parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    after = dict(model.named_parameters())
    shrunk = {name for name, value in before.items() if torch.allclose(after[name], value * (1 - 0.1 * 0.5))}
    same = {name for name, value in before.items() if torch.equal(after[name], value)}
    model.load_state_dict(before, strict=False)
    assert shrunk | same == set(before)
    return shrunk - same, same - shrunk, shrunk & same  # a parameter of zeros is in the last


@pytest.mark.parametrize("name", ["classifier", "detector"])
def test_norms_and_biases_can_be_left_from_decay(name, models):
    model = models[name]
    plain = set()
    for path, module in model.named_modules():
        for own, _ in module.named_parameters(recurse=False):
            if own == "bias" or isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                plain.add(f"{path}.{own}")
    everything = {path for path, _ in model.named_parameters()}
    assert 0 < len(plain) < len(everything)
    shrunk, same, zero = names_that_shrink(model, decay_norms_and_biases=False)
    assert shrunk == everything - plain - zero
    assert same == plain - zero
    assert not zero
    assert names_that_shrink(model)[0] == everything


def test_frozen_parameters_are_left_out(models):
    model = models["classifier"]
    model.mobilevit.requires_grad_(False)
    try:
        optimizer = make_optimizer(model, learning_rate=0.1, weight_decay=0.1, betas=(0.8, 0.95))
        assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [
            id(p) for p in model.classifier.parameters()
        ]
        assert all(group["betas"] == (0.8, 0.95) for group in optimizer.param_groups)
    finally:
        model.mobilevit.requires_grad_(True)


# --- files -----------------------------------------------------------------------------------------------------------


def save_some(run, steps, keep=2):
    for step in steps:
        save_checkpoint(run, step, {"step": step, "weights": torch.full((3,), step)}, keep)


def test_the_newest_checkpoints_are_kept(tmp_path):
    save_some(tmp_path, [1, 2, 10, 9])
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000009.pt", "step-00000010.pt"]
    loaded = load_checkpoint(find_checkpoints(tmp_path)[-1])
    assert loaded["step"] == 10
    assert loaded["weights"].tolist() == [10, 10, 10]


def test_other_files_are_no_checkpoints_and_stay(tmp_path):
    save_some(tmp_path, [5], keep=1)
    for name in ("step-1.txt", "best.pt", ".gitkeep"):
        (tmp_path / "checkpoints" / name).write_text("mine")
    save_some(tmp_path, [6], keep=1)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        ".gitkeep",
        "best.pt",
        "step-00000006.pt",
        "step-1.txt",
    ]
    assert find_checkpoints(tmp_path / "nothing") == []


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('was run')",))


def test_what_is_no_checkpoint_is_told_and_never_run(tmp_path):
    path = tmp_path / "step-00000001.pt"
    for write in (lambda: path.write_text("nothing"), lambda: torch.save({"a": Evil()}, path)):
        write()
        with pytest.raises(ValueError, match=r"step-00000001\.pt is no checkpoint.*Remove it"):
            load_checkpoint(path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "before, ä")
    assert path.read_text(encoding="utf-8") == "before, ä"

    def fail(file):
        file.write(b"half of")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fail)
    assert path.read_text(encoding="utf-8") == "before, ä"
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_that_cannot_be_written_leaves_the_one_before(models, checkpoints, tmp_path, monkeypatch):
    model = models["classifier"]
    processor = transformers.AutoImageProcessor.from_pretrained(checkpoints["image-classification"])
    save_model(tmp_path, model, processor)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    monkeypatch.setattr(type(processor), "save_pretrained", lambda *args: Path("/nothing/here").write_text(""))
    with pytest.raises(ValueError, match=r"can't be written .*there is no checkpoint yet\. Make room"):
        save_model(tmp_path, model, processor)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    save_some(tmp_path, [1, 2, 3], keep=9)
    kept = [".gitignore", "notes.txt", ".settings/a.txt", "checkpoints/.hidden"]
    left = [".scratch-abc/model.safetensors", "checkpoints/.scratch-12/step-00000004.pt"]
    for name in kept + left:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    tidy(tmp_path, 2)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {*kept, "checkpoints/step-00000002.pt", "checkpoints/step-00000003.pt"}
    assert not list(tmp_path.rglob(".scratch-*"))


def test_the_history_goes_on_from_a_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    history = History(path, 0)
    for step in (2, 4, 4, 6):
        history.add({"step": step, "loss": step / 10})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # as a process leaves it that is killed
    history = History(path, 4)
    assert [line["step"] for line in history.lines] == [2, 4, 4]
    history.add({"step": 5, "loss": 0.5})
    assert [json.loads(line) for line in path.read_text().splitlines()] == history.lines
    assert [line["step"] for line in history.lines] == [2, 4, 4, 5]


# --- sizes of images, weights of classes ---------------------------------------------------------------------------


def test_batches_have_one_size_or_the_paper_s():
    assert batch_shapes("off", 256, 128, 0.3) == [(256, 256, 128)]
    paper = [(160, 160, 327), (192, 192, 227), (256, 256, 128), (288, 288, 101), (320, 320, 81)]
    assert batch_shapes("on", 256, 128, 0.3) == paper  # section 3.3


@pytest.mark.parametrize("image_size", [64, 96, 100, 160, 224, 256, 320])
def test_images_grow_until_they_are_as_large_as_in_use(image_size):
    shapes = [batch_shapes("progressive", image_size, 8, step / 100) for step in range(101)]
    assert all(len(found) == 1 and found[0].size == 8 and found[0].height == found[0].width for found in shapes)
    sides = [found[0].height for found in shapes]
    assert sides == sorted(sides)
    assert set(sides[50:]) == {image_size}
    assert all(side % 32 == 0 or side == image_size for side in sides)
    assert sides[0] < image_size or image_size == 64
    assert sides[0] >= 0.5 * image_size


def test_balanced_weights_make_classes_count_the_same():
    counts = [6, 0, 2, 4]
    weights = balanced_weights(counts).tolist()
    samples = [weights[label] for label, count in enumerate(counts) for _ in range(count)]
    assert sum(samples) / len(samples) == pytest.approx(1)
    assert [weight * count for weight, count in zip(weights, counts, strict=True)] == pytest.approx([4, 0, 4, 4])
    assert weights[1] == 0
