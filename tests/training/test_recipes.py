"""Recipes: a miniature run of each; fine-tuning recipes equal the defaults, the others the paper."""

import re

import pytest
import yaml
from training_runs import MODEL_FILES, SCRIPT_OF, SCRIPTS, read_arguments

from mobilevit_hf.data.sampler import BatchShape, multi_scale_shapes
from mobilevit_hf.training.arguments import TrainArguments, read_recipe
from mobilevit_hf.training.optimization import Schedule

RECIPES = SCRIPTS / "recipes"


@pytest.mark.parametrize("recipe", [pytest.param(path, id=path.stem) for path in sorted(RECIPES.glob("*.yaml"))])
def test_miniature_run(recipe, small_datasets, initial_checkpoint, mobilevit, no_plots, tmp_path):
    patterns = {"object-detection": "coco|detection|cells", "image-segmentation": "segmentation"}
    matches = (task for task, pattern in patterns.items() if re.search(pattern, recipe.stem))
    task = next(matches, "image-classification")
    values = yaml.safe_load(recipe.read_text())
    length = ("--num-train-epochs", 0.3) if "num_train_epochs" in values else ("--max-steps", 2)
    words = ("--model", initial_checkpoint, "--output-dir", tmp_path / "run", "--eval-steps", 9, *length)
    small = ("--image-size", 64, "--per-device-train-batch-size", 4, "--dataloader-num-workers", 0, "--use-cpu")
    code, _, err = mobilevit("train", small_datasets[task], "--recipe", recipe, *words, *small)
    assert code == 0, err
    overridden = {"model", "image_size", "per_device_train_batch_size", "num_train_epochs", "max_steps", "eval_steps"}
    arguments, names = read_arguments(tmp_path / "run"), values.keys() - overridden
    assert {name: arguments[name] for name in names} == {name: values[name] for name in names}
    assert arguments["image_size"] == 64
    assert {path.name for path in (tmp_path / "run").iterdir()} > MODEL_FILES


@pytest.mark.parametrize("task", list(SCRIPT_OF))
def test_finetuning_recipes_are_the_defaults(task):
    values = read_recipe(RECIPES / f"finetune-{task.rpartition('-')[2]}.yaml")
    assert {"learning_rate", "per_device_train_batch_size", "hidden_dropout_prob", "multi_scale"} < values.keys()
    assert TrainArguments(**values).for_task(task) == TrainArguments().for_task(task)


def schedule_of(arguments):
    a = arguments
    return Schedule(a.learning_rate, a.min_lr_rate, a.warmup_steps, a.warmup_lr_rate)


@pytest.mark.parametrize(("variant", "dropout"), [("s", 0.1), ("xs", 0.1), ("xxs", 0.05)])
def test_imagenet_recipes_match_the_paper(variant, dropout):
    """Section 4.1: 300 epochs, 1024 images per step on 8 GPUs, 2e-4 → 2e-3 in 3k steps, then a cosine to 2e-4."""
    a = TrainArguments(**read_recipe(RECIPES / f"imagenet1k-{variant}.yaml"))
    assert (a.model, a.hidden_dropout_prob) == (variant, dropout)
    assert (a.image_size, 8 * a.per_device_train_batch_size) == (256, 1024)
    images = sum(shape.size for shape in multi_scale_shapes(BatchShape(256, 256, 128))) / 5
    assert a.max_steps == round(300 * 1_281_167 / (8 * images))
    schedule = schedule_of(a)
    assert schedule(0, 0.0) == pytest.approx(2e-4)
    assert schedule(1500, 0.0) == pytest.approx(1.1e-3)
    assert schedule(3000, 0.0) == pytest.approx(2e-3)
    assert schedule(200_000, 0.5) == pytest.approx(1.1e-3)
    assert schedule(278_031, 1.0) == pytest.approx(2e-4)
    assert (a.weight_decay, a.decay_norms_and_biases, a.label_smoothing_factor) == (0.01, True, 0.1)
    assert (1 - a.ema_decay, a.ema_warmup) == (pytest.approx(5e-4), False)
    assert (a.multi_scale, a.crop_scale, a.horizontal_flip, a.vertical_flip) == ("on", 0.08, 0.5, 0.0)
    assert a.max_grad_norm == 0
    assert (a.rand_augment, a.random_erasing, a.mixup, a.cutmix) == (None, 0.0, 0.0, 0.0)
    assert a.for_task("image-classification").class_weights == "none"
    assert 300 * a.eval_steps == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("variant", "name", "dropout"), [("s", "", 0.1), ("xs", "x-", 0.1), ("xxs", "xx-", 0.05)])
def test_coco_recipes_match_the_paper(variant, name, dropout):
    """Section 4.2.1: 320x320, 200 epochs, 128 images per step, 9e-4; the official code has no zoom-out."""
    a = TrainArguments(**read_recipe(RECIPES / f"coco-{variant}.yaml"))
    assert (a.model, a.hidden_dropout_prob, a.anchors) == (f"apple/mobilevit-{name}small", dropout, "paper")
    assert (a.num_train_epochs, a.image_size, a.per_device_train_batch_size) == (200, 320, 128)
    schedule = schedule_of(a)
    assert schedule(500, 0.0) == pytest.approx(9e-4)
    assert schedule(200_000, 1.0) < 2e-6
    assert (a.weight_decay, 1 - a.ema_decay, a.ema_warmup) == (0.01, pytest.approx(5e-4), False)
    assert (a.multi_scale, a.horizontal_flip, a.color_jitter, a.zoom_out, a.crop) == ("off", 0.5, 1.0, 0.0, 1.0)
    assert a.max_grad_norm == 0


@pytest.mark.parametrize(("variant", "name", "dropout"), [("s", "", 0.1), ("xs", "x-", 0.1), ("xxs", "xx-", 0.05)])
def test_voc_recipes_match_the_paper(variant, name, dropout):
    """Section 4.2.2: 512x512, output stride 16, 50 epochs, 128 images per step, 9e-4; no changes of color."""
    a = TrainArguments(**read_recipe(RECIPES / f"voc-segmentation-{variant}.yaml"))
    assert (a.model, a.hidden_dropout_prob) == (f"apple/mobilevit-{name}small", dropout)
    assert (a.image_size, a.output_stride) == (512, 16)
    assert (a.num_train_epochs, a.per_device_train_batch_size) == (50, 128)
    schedule = schedule_of(a)
    assert schedule(500, 0.0) == pytest.approx(9e-4)
    assert schedule(200_000, 1.0) < 2e-6
    assert (a.weight_decay, 1 - a.ema_decay, a.ema_warmup) == (0.01, pytest.approx(5e-4), False)
    assert (a.class_weights, a.dice_weight, a.focal_gamma) == ("none", 0.0, 0.0)
    assert (a.multi_scale, a.min_scale, a.max_scale) == ("off", 1.0, 2.0)
    assert (a.horizontal_flip, a.color_jitter, a.max_grad_norm) == (0.5, 0.0, 0)
