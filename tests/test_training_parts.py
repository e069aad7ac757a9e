"""The parts of a training: arguments, learning rate, optimizer, average, files, sizes, and what it starts with."""

import dataclasses
import io
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from formula import formula_image
from PIL import Image
from torch import nn

import mobilevit_hf
from mobilevit_hf.data.dataset import Objects, Sample
from mobilevit_hf.files import write_text, write_whole
from mobilevit_hf.training.arguments import DEFAULTS, METRICS, NEW_WEIGHTS, ONLY_FOR, TrainArguments, read_recipe
from mobilevit_hf.training.checkpoints import (
    History,
    find_checkpoints,
    load_checkpoint,
    save_checkpoint,
    save_model,
    tidy,
)
from mobilevit_hf.training.ema import EMA
from mobilevit_hf.training.inputs import batch_shapes
from mobilevit_hf.training.optimization import Schedule, make_optimizer
from mobilevit_hf.training.starting import start_classifier, start_detector
from mobilevit_hf.training.tasks import balanced_weights

FIELDS = {field.name: field for field in dataclasses.fields(TrainArguments)}


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


# --- arguments -------------------------------------------------------------------------------------------------------

# What means the same in transformers.
SHARED = [
    "learning_rate",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "num_train_epochs",
    "max_steps",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "max_grad_norm",
    "gradient_accumulation_steps",
    "label_smoothing_factor",
    "metric_for_best_model",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "bf16",
    "fp16",
    "gradient_checkpointing",
    "dataloader_num_workers",
    "seed",
    "use_cpu",
    "output_dir",
]


@pytest.mark.parametrize("name", FIELDS)
def test_every_argument_is_described(name):
    field = FIELDS[name]
    assert re.fullmatch(r"\w.{5,110}\.", field.metadata["help"])
    assert field.metadata["panel"]
    if field.metadata["choices"]:
        assert field.default is None or field.default in field.metadata["choices"]


def test_names_are_those_of_transformers():
    theirs = {field.name: field for field in dataclasses.fields(transformers.TrainingArguments)}
    assert not [name for name in SHARED if name not in theirs or name not in FIELDS]
    for name in ("adam_beta1", "adam_beta2", "gradient_accumulation_steps", "push_to_hub", "bf16", "fp16", "use_cpu"):
        assert FIELDS[name].default == theirs[name].default


def test_shared_values_mean_the_same_in_transformers(tmp_path):
    values = {name: FIELDS[name].default for name in SHARED if FIELDS[name].default is not None}
    values |= {"eval_steps": 0.25, "save_steps": 50, "warmup_steps": 0.1, "max_grad_norm": 0.0}
    ours = TrainArguments(**values)
    theirs = transformers.TrainingArguments(**values | {"output_dir": str(tmp_path), "use_cpu": True})
    assert (theirs.eval_steps, theirs.save_steps) == (ours.eval_steps, ours.save_steps) == (0.25, 50)
    assert theirs.get_warmup_steps(1000) == 100
    assert theirs.per_device_eval_batch_size == ours.per_device_eval_batch_size


WRONG = {
    "learning_rate": (0, -1.0, "fast", True, math.nan, [1e-3]),
    "num_train_epochs": (0, -2),
    "max_steps": (0, -1, 1.5, "ten"),
    "max_minutes": (0, "soon"),
    "image_size": (31, 0, 96.5),
    "per_device_train_batch_size": (0, 2.0, True),
    "per_device_eval_batch_size": (0,),
    "gradient_accumulation_steps": (0, None),
    "warmup_steps": (-0.1, None),
    "warmup_lr_rate": (-0.1, 1.1),
    "min_lr_rate": (1.5,),
    "weight_decay": (-0.01,),
    "adam_beta1": (1.0, -0.1),
    "adam_beta2": (1, 2),
    "max_grad_norm": (-1,),
    "label_smoothing_factor": (1, -0.1),
    "ema_decay": (1, 1.5, math.nan),
    "hidden_dropout_prob": (1, -0.5),
    "validation_fraction": (1, -0.1),
    "max_bad": (1.01, -0.01),
    "early_stopping_patience": (0, -1, 0.5),
    "eval_steps": (0, -1),
    "save_steps": (0,),
    "save_total_limit": (0, -1, 1.5),
    "logging_steps": (0,),
    "dataloader_num_workers": (-1, 0.5),
    "seed": (-1, "lucky"),
    "freeze_backbone": ("yes", 1, None),
    "multi_scale": ("yes", True),
    "crop_scale": (0, 1.1),
    "class_weights": ("equal",),
    "anchors": ("own",),
    "report_to": ("paper",),
    "task": ("segmentation",),
    "data": (None, 3),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_wrong_values_are_told(name, value):
    with pytest.raises(ValueError) as error:
        TrainArguments(**{name: value})
    told = re.fullmatch(rf"{name}: got (.*), expected .*\.", str(error.value))
    assert told[1] == repr(value) or float(told[1]) == value


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"bf16": True, "fp16": True}, "bf16, fp16: got both"),
        ({"num_train_epochs": 3, "max_steps": 100}, "num_train_epochs, max_steps: got both"),
        ({"streaming": True}, "streaming: .* max_steps or max_minutes"),
    ],
)
def test_values_that_exclude_each_other_are_told(values, expected):
    with pytest.raises(ValueError, match=expected):
        TrainArguments(**values)


def test_arguments_for_the_other_task_are_told():
    for task, names in ONLY_FOR.items():
        other = next(name for name in ONLY_FOR if name != task)
        for name in names:
            changed = {"none": "balanced", "auto": "paper", None: 9}.get(FIELDS[name].default, 0.25)
            arguments = TrainArguments(data="pictures", **{name: changed})
            assert getattr(arguments.for_task(task), name) == changed
            with pytest.raises(ValueError, match=f"^{name}: for {task}, and this is {other}"):
                arguments.for_task(other)
    with pytest.raises(ValueError, match=r"^pictures is for object-detection, expected data for image-class"):
        TrainArguments(data="pictures", task="image-classification").for_task("object-detection")
    with pytest.raises(ValueError, match=r"^metric_for_best_model: got 'map', expected one of accuracy"):
        TrainArguments(metric_for_best_model="map").for_task("image-classification")


@pytest.mark.parametrize("task", DEFAULTS)
def test_what_was_not_said_is_the_task_s(task):
    arguments = TrainArguments().for_task(task)
    assert arguments.task == task
    for name, value in DEFAULTS[task].items():
        assert getattr(arguments, name) == value
        assert getattr(TrainArguments(), name) is None
    assert arguments.metric_for_best_model in METRICS[task]
    new = TrainArguments(model="xxs").for_task(task)
    for name, value in (DEFAULTS[task] | NEW_WEIGHTS[task]).items():
        assert getattr(new, name) == value
    given = TrainArguments(model="xxs", learning_rate=0.5, label_smoothing_factor=0.0).for_task(task)
    assert (given.learning_rate, given.label_smoothing_factor) == (0.5, 0.0)


def test_unknown_names_are_told():
    with pytest.raises(ValueError, match=r"^recipe\.yaml: there is no learnin_rate, 7\. Expected .*learning_rate"):
        TrainArguments.from_dict({"learnin_rate": 1, "data": "x", 7: 2}, "recipe.yaml")


def test_a_recipe_says_the_same(tmp_path):
    said = TrainArguments(
        data="Bilder/Äpfel", learning_rate=1e-5, max_steps=300, eval_steps=50, rand_augment=9, push_to_hub=True
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(said.to_yaml(), encoding="utf-8")
    assert TrainArguments.from_dict(read_recipe(path)) == said
    path.write_text("learning_rate: 1e-3\nwarmup_steps: 500\nema_decay: 5E-1\nmax_grad_norm:\n")
    arguments = TrainArguments.from_dict(read_recipe(path))
    assert arguments == TrainArguments(learning_rate=0.001, warmup_steps=500.0, ema_decay=0.5, max_grad_norm=None)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file.*Give the path of a recipe"),
        (b"a: [1", "is not YAML"),
        (b"a: \xff", "is not YAML"),
        (b"- a\n- b\n", "got list, expected lines of `name: value`"),
        (b"", "got NoneType, expected lines"),
    ],
)
def test_what_is_no_recipe_is_told(content, expected, tmp_path):
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=expected) as error:
        read_recipe(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


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


# --- sizes of pictures, weights of classes ---------------------------------------------------------------------------


def test_batches_have_one_size_or_the_paper_s():
    assert batch_shapes("off", 256, 128, 0.3) == [(256, 256, 128)]
    paper = [(160, 160, 327), (192, 192, 227), (256, 256, 128), (288, 288, 101), (320, 320, 81)]
    assert batch_shapes("on", 256, 128, 0.3) == paper  # section 3.3


@pytest.mark.parametrize("image_size", [64, 96, 100, 160, 224, 256, 320])
def test_pictures_grow_until_they_are_as_large_as_in_use(image_size):
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


# --- the model to start with -----------------------------------------------------------------------------------------

OWN = ["cat", "dog", "fish", "owl"]


def logits_of(model):
    with torch.no_grad():
        return model.eval()(pixel_values=formula_image(64, 64)).logits


def test_a_classifier_of_the_same_classes_keeps_its_head(checkpoints):
    source = checkpoints["image-classification"]
    start = start_classifier(TrainArguments(model=str(source)), OWN, None)
    stock = transformers.MobileViTForImageClassification.from_pretrained(source)
    torch.testing.assert_close(logits_of(start.model), logits_of(stock), rtol=1e-4, atol=1e-4)
    assert (start.image_size, start.model.config.image_size) == (64, 64)
    assert start.processor.size["shortest_edge"] == 72
    assert start.processor.crop_size == {"height": 64, "width": 64}
    assert start.notes == ()


@pytest.mark.parametrize("classes", [["a", "b", "c", "d"], ["dog", "cat", "fish", "owl"], ["cat", "dog"]])
def test_a_classifier_of_other_classes_gets_a_new_head(classes, checkpoints):
    source = checkpoints["image-classification"]
    start = start_classifier(TrainArguments(model=str(source)), classes, None)
    before = transformers.MobileViTForImageClassification.from_pretrained(source).state_dict()
    after = start.model.state_dict()
    same = [name for name, value in after.items() if value.shape == before[name].shape and value.equal(before[name])]
    assert set(after) - set(same) == {"classifier.weight", "classifier.bias"}
    assert after["classifier.weight"].shape[0] == len(classes)
    assert 0.005 < after["classifier.weight"].std() < 0.05
    assert not after["classifier.bias"].any()
    assert [start.model.config.id2label[i] for i in range(len(classes))] == classes
    assert start.model.config.label2id == {name: i for i, name in enumerate(classes)}


@pytest.mark.parametrize(
    ("asked", "side", "size"), [(None, None, 256), (None, 1000, 256), (None, 200, 192), (None, 30, 96), (320, 30, 320)]
)
def test_a_classifier_sees_pictures_no_larger_than_they_are(asked, side, size, checkpoints, tmp_path):
    shutil.copytree(checkpoints["image-classification"], tmp_path, dirs_exist_ok=True)
    sizes = {"size": {"shortest_edge": 288}, "crop_size": {"height": 256, "width": 256}}
    transformers.MobileViTImageProcessor(**sizes).save_pretrained(tmp_path)
    start = start_classifier(TrainArguments(model=str(tmp_path), image_size=asked), OWN, side)
    assert (start.image_size, start.model.config.image_size) == (size, size)
    assert start.processor.crop_size == {"height": size, "width": size}
    assert start.processor.size["shortest_edge"] == round(size * 288 / 256)


@pytest.mark.parametrize(("asked", "size"), [(None, 96), (256, 256)])
def test_a_classifier_starts_with_new_weights(asked, size):
    start = start_classifier(TrainArguments(model="xxs", image_size=asked), OWN, 1000)
    assert start.image_size == size
    assert start.processor.size["shortest_edge"] == round(size * 288 / 256)  # as in the paper (section 4.1)
    assert start.processor.crop_size == {"height": size, "width": size}
    assert start.model.config.hidden_sizes == [64, 80, 96]
    assert start.processor.do_flip_channel_order is False


def test_dropout_can_be_asked_for(checkpoints, detector):
    for start in (start_classifier, start_detector):
        source = checkpoints["image-classification"] if start is start_classifier else detector
        begun = start(TrainArguments(model=str(source), hidden_dropout_prob=0.35), OWN, None)
        config = getattr(begun.model.config, "backbone_config", begun.model.config)
        assert config.hidden_dropout_prob == 0.35
        layers = [
            module.p for name, module in begun.model.named_modules() if "transformer" in name and hasattr(module, "p")
        ]
        assert 0.35 in layers


@pytest.mark.parametrize(
    ("start", "task"), [(start_classifier, "detector"), (start_classifier, "vit"), (start_detector, "vit")]
)
def test_other_models_are_refused(start, task, detector, tmp_path):
    source = detector
    if task == "vit":
        source = tmp_path
        fields = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        transformers.ViTForImageClassification(transformers.ViTConfig(**fields)).save_pretrained(source)
    with pytest.raises(ValueError, match=r"got a model of type .*, expected mobilevit .*Start from") as error:
        start(TrainArguments(model=str(source)), OWN, None)
    assert str(source) in str(error.value)
    with pytest.raises(ValueError, match="There is no directory"):
        start(TrainArguments(model="no such/model at all"), OWN, None)


def test_a_detector_starts_from_a_classifier(checkpoints):
    source = checkpoints["image-classification"]
    start = start_detector(TrainArguments(model=str(source), image_size=96), OWN, None)
    before = transformers.MobileViTForImageClassification.from_pretrained(source).state_dict()
    backbone = {n: v for n, v in start.model.state_dict().items() if n.startswith("backbone.")}
    assert len(backbone) > 200
    assert all(value.equal(before["mobilevit." + name.partition(".")[2]]) for name, value in backbone.items())
    assert [start.model.config.id2label[i] for i in range(4)] == OWN
    assert (start.image_size, start.model.config.image_size) == (96, 96)
    assert start.processor.size == {"height": 96, "width": 96}
    assert start.processor.do_flip_channel_order is True  # as the classifier's


def test_a_detector_starts_with_new_weights():
    start = start_detector(TrainArguments(model="xxs"), OWN, None)
    assert start.image_size == 320
    assert start.model.config.backbone_config.hidden_sizes == [64, 80, 96]
    assert start.processor.size == {"height": 320, "width": 320}
    assert start.processor.do_flip_channel_order is False


@pytest.mark.parametrize("classes", [OWN, ["a", "b", "c", "d"], ["a"]])
def test_a_detector_goes_on_with_its_anchors(classes, detector, tmp_path):
    model = mobilevit_hf.MobileViTSSDLiteForObjectDetection.from_pretrained(detector)
    model.config.anchor_scales = [0.11, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0]
    model.config.recommended_threshold = 0.3
    model.save_pretrained(tmp_path)
    transformers.AutoImageProcessor.from_pretrained(detector).save_pretrained(tmp_path)
    start = start_detector(TrainArguments(model=str(tmp_path), image_size=96), classes, None)
    assert start.model.config.anchor_scales == model.config.anchor_scales
    assert start.model.config.recommended_threshold is None
    assert (start.image_size, start.processor.size) == (96, {"height": 96, "width": 96})
    assert any("anchors are those of the detector" in note for note in start.notes)
    before, after = model.state_dict(), start.model.state_dict()
    changed = {n for n, value in after.items() if value.shape != before[n].shape or not value.equal(before[n])}
    if classes == OWN:
        assert changed == set()
    else:
        assert changed
        assert all(re.search(r"^head\..*predictor\.convolution", name) for name in changed)
        weights = [after[name] for name in changed if name.endswith("weight")]
        assert len(weights) == 6
        assert all(value.std() > 0.01 for value in weights)
    assert {len(value) for name, value in after.items() if name.endswith("predictor.convolution.bias")} == {
        anchors * (4 + 1 + len(classes)) for anchors in (6, 4)
    }


def share_that_meets(boxes, scales, ratios, strides, size):
    """The share of boxes (x1, y1, x2, y2) in 0..1 that overlap one of all anchors by half or more, one by one."""
    met = 0
    for x1, y1, x2, y2 in boxes:
        best = 0.0
        for level, stride in enumerate(strides):
            cells = 1 if stride == -1 else -(-size // stride)
            s, following = scales[level], scales[level + 1]
            sides = [(s, s), (math.sqrt(s * following),) * 2]
            for r in ratios[level]:
                sides += [(s * math.sqrt(r), s / math.sqrt(r)), (s / math.sqrt(r), s * math.sqrt(r))]
            for w, h in [(min(w, 1), min(h, 1)) for w, h in sides]:
                for row in range(cells):
                    for column in range(cells):
                        x, y = (column + 0.5) / cells, (row + 0.5) / cells
                        width = min(x2, x + w / 2) - max(x1, x - w / 2)
                        height = min(y2, y + h / 2) - max(y1, y - h / 2)
                        shared = max(0, width) * max(0, height)
                        best = max(best, shared / ((x2 - x1) * (y2 - y1) + w * h - shared))
        met += best >= 0.5
    return met / len(boxes)


def test_anchors_are_fitted_and_the_gain_is_told():
    chance = np.random.default_rng(0)
    boxes = []  # narrow ones, 5 to 10 pixels wide and about 50 high, in a picture of 100x80
    for _ in range(40):
        x, y, w, h = chance.uniform(0, 90), chance.uniform(0, 25), chance.uniform(5, 10), chance.uniform(48, 54)
        boxes.append([x, y, x + w, y + h])
    pictures = [Image.new("RGB", (100, 80)) for _ in range(10)]
    samples = [
        Sample(f"{i}", picture, objects=Objects.from_lists(boxes[i::10], [0] * 4))
        for i, picture in enumerate(pictures)
    ]
    automatic = start_detector(TrainArguments(model="xxs"), OWN, samples)
    paper = start_detector(TrainArguments(model="xxs", anchors="paper"), OWN, samples)
    assert paper.notes == ()
    assert paper.model.config.anchor_scales == pytest.approx(torch.linspace(0.1, 1.05, 7).tolist())
    note = next(note for note in automatic.notes if "anchor" in note)
    told = [float(share) for share in re.findall(r"([\d.]+)%", note)]
    boxes = [[x1 / 100, y1 / 80, x2 / 100, y2 / 80] for x1, y1, x2, y2 in boxes]
    counted = [
        100 * share_that_meets(boxes, config.anchor_scales, config.anchor_ratios, config.feature_strides, 320)
        for config in (paper.model.config, automatic.model.config)
    ]
    assert told == pytest.approx(counted, abs=0.06)
    assert told[0] < 90 < told[1]
