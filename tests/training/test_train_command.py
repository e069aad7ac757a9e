"""`mobilevit train` end to end: output directory, use by other commands, invalid images, several processes."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import PACKAGE_PARENT
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from safetensors.torch import load_file
from toy_datasets import CLASSES, IGNORED
from training_runs import MODEL_FILES, SCRIPT_OF, SCRIPTS, SMALL, only_line, read_arguments, read_metrics, read_results

import mobilevit_hf
from mobilevit_hf import cli
from mobilevit_hf.cli.train import make_command
from mobilevit_hf.records import CrossValidationRecord
from mobilevit_hf.tasks import TASKS
from mobilevit_hf.training.checkpoint import find_checkpoints, load_checkpoint
from mobilevit_hf.training.state import TrainingResult

FILES = MODEL_FILES | {
    *("metrics.jsonl", "results.csv", "recipe.yaml", "results.json", "run.json", "checkpoints"),
    *("report.html", "curves.png", "train_batches.png", "class_counts.png"),
}
FIGURES = {"samples.png", "mistakes.png", "confusion_matrix.png", "confusion_matrix_normalized.png"}
FIGURES_OF = {
    "image-classification": FIGURES | {"reliability.png", "least_confident.png"},
    "object-detection": FIGURES
    | {"average_precision.png", "precision_recall.png", "thresholds.png", "detection_errors.png", "boxes.png"},
    "image-segmentation": {"worst_images.png", "class_iou.png", "confusion_matrix_normalized.png"},
}


@pytest.fixture(scope="module", params=list(SCRIPT_OF))
def task(request):
    return request.param


@pytest.fixture(scope="module")
def run_dir(task, small_datasets, initial_checkpoint, tmp_path_factory):
    """Output directory of a short run."""
    folder = tmp_path_factory.mktemp("run") / task
    options = (*SMALL, "--max-steps", 12, "--eval-steps", 0.5, "--logging-steps", 4, "--learning-rate", 0.01)
    words = ("train", small_datasets[task], "--model", initial_checkpoint, "--output-dir", folder, *options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mobilevit_hf.cli.train.tune_allocator", lambda: True)
        cli.app(list(map(str, words)), standalone_mode=False)
    return folder


def validation_images(folder):
    return sorted(path for name in ("val", "validation") for path in (folder / name).rglob("*.png"))


def flatten(metrics, prefix=""):
    """Return nested metrics as one dict."""
    flat = {}
    for name, value in metrics.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def mean_iou(files, predictions):
    """Return the mean IoU of predicted masks of `draw_segmentation`, over the classes in predictions or targets."""
    intersections, unions, names = Counter(), Counter(), ("background", *CLASSES)
    for file, segments in zip(files, predictions, strict=True):
        target = np.array(Image.open(file.parents[1] / f"{file.parent.name}annot" / file.name))
        masks = {segment["label"]: coco_mask.decode(segment["mask"]).astype(bool) for segment in segments}
        for label, name in enumerate(names):
            predicted, is_target = masks.get(name, np.zeros(target.shape, bool)) & (target != IGNORED), target == label
            intersections[name] += int((predicted & is_target).sum())
            unions[name] += int((predicted | is_target).sum())
    return np.mean([intersections[name] / union for name, union in unions.items() if union])


# --- output directory ------------------------------------------------------------------------------------------------


def test_output_directory(task, run_dir, small_datasets):
    code = {path.name for path in run_dir.glob("*.py")}
    assert bool(code) == (task == "object-detection")
    assert {path.name for path in run_dir.iterdir()} - code == FILES | FIGURES_OF[task] | {"predictions.csv"}
    for path in run_dir.glob("*.png"):
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 50
            assert len(set(image.convert("L").resize((64, 64)).getdata())) > 4, path.name

    lines = read_metrics(run_dir)
    losses = [line for line in lines if "loss" in line]
    assert [line["step"] for line in losses] == [4, 6, 8, 12]  # and at an evaluation
    for line in losses:
        parts = {"loss_ce", "loss_bbox"} if task == "object-detection" else set()
        assert line.keys() - parts == {
            *("step", "progress", "epoch", "loss", "learning_rate", "images_per_second", "seconds", "waiting_for_data")
        }
        assert all(math.isfinite(value) for value in line.values())
        assert line["progress"] == pytest.approx(line["step"] / 12)
        assert 0 <= line["waiting_for_data"] <= 1
        assert line["learning_rate"] <= 0.01
    per_epoch = -(-{"image-classification": 24, "object-detection": 12, "image-segmentation": 12}[task] // 4)
    assert losses[-1]["epoch"] == pytest.approx(12 / per_epoch, abs=1e-3)

    metric = TASKS[task].headline_metric
    evaluations = [line for line in lines if "eval_" + metric in line]
    assert [line["step"] for line in evaluations] == [6, 12]
    results = read_results(run_dir)
    assert (results["metric"], results["steps"], results["split"]) == (metric, 12, "validation")
    assert results["num_images"] == len(validation_images(small_datasets[task]))
    assert results["best"] == max(line["eval_" + metric] for line in evaluations) == results["metrics"][metric]
    assert 0 < results["best"] < 1


def test_recipe_reproduces_the_run(task, run_dir, small_datasets, mobilevit, no_plots, tmp_path):
    words = ("train", small_datasets[task], "--recipe", run_dir / "recipe.yaml", "--output-dir", tmp_path / "again")
    assert mobilevit(*words)[0] == 0
    assert read_arguments(tmp_path / "again") == read_arguments(run_dir) | {"output_dir": str(tmp_path / "again")}
    weights = [(folder / "model.safetensors").read_bytes() for folder in (run_dir, tmp_path / "again")]
    assert weights[0] == weights[1]
    assert read_results(tmp_path / "again")["metrics"] == read_results(run_dir)["metrics"]


def test_evaluate_agrees_with_training(task, run_dir, small_datasets, mobilevit):
    code, out, _ = mobilevit("evaluate", run_dir, small_datasets[task], "--json")
    assert code == 0
    measured, results = json.loads(out), read_results(run_dir)
    assert (measured["split"], measured["num_images"]) == ("validation", results["num_images"])
    assert flatten(measured["metrics"]) == pytest.approx(flatten(results["metrics"]), abs=1e-6)
    if task == "object-detection":
        best = measured["best_threshold"]["value"]
        assert results["threshold"] == pytest.approx(best, abs=1e-5)
        assert json.loads((run_dir / "config.json").read_text())["recommended_threshold"] == round(best, 3)


def test_predict_agrees_with_training(task, run_dir, small_datasets, mobilevit):
    files = validation_images(small_datasets[task])
    code, out, err = mobilevit("predict", *files, "--model", run_dir, "--json")
    assert (code, err) == (0, "")
    predictions = [json.loads(line)["predictions"] for line in out.splitlines()]
    if task == "image-classification":
        correct = [top[0]["label"] == file.parent.name for file, top in zip(files, predictions, strict=True)]
        assert np.mean(correct) == read_results(run_dir)["metrics"]["accuracy"]
        return
    if task == "image-segmentation":
        assert mean_iou(files, predictions) == pytest.approx(read_results(run_dir)["metrics"]["mean_iou"], abs=1e-9)
        return
    _, out, _ = mobilevit("predict", *files, "--model", run_dir, "--json", "--threshold", 0)
    unfiltered = [json.loads(line)["predictions"] for line in out.splitlines()]
    threshold = json.loads((run_dir / "config.json").read_text())["recommended_threshold"]
    assert predictions == [[d for d in detections if d["score"] > threshold] for detections in unfiltered]
    assert 0 < sum(map(len, predictions)) < sum(map(len, unfiltered))


def test_default_threshold_without_a_recommended_one(run_dir, small_datasets, mobilevit, tmp_path):
    if not (run_dir / "average_precision.png").exists():
        pytest.skip("a classifier has no threshold")
    shutil.copytree(run_dir, tmp_path / "run")
    config = json.loads((run_dir / "config.json").read_text())
    (tmp_path / "run/config.json").write_text(json.dumps(config | {"recommended_threshold": None}))
    file = validation_images(small_datasets["object-detection"])[0]
    half = mobilevit("predict", "--json", file, "--model", run_dir, "--threshold", 0.5)[1]
    assert mobilevit("predict", "--json", file, "--model", tmp_path / "run")[1] == half
    assert config["recommended_threshold"] != 0.5


@pytest.mark.slow
def test_stock_transformers_agrees(task, run_dir, small_datasets, run_python):
    """In a process without this package; a detector contains its code."""
    files, detects = validation_images(small_datasets[task]), task == "object-detection"
    code = f"""
        import json, transformers
        predict = transformers.pipeline({task!r}, model={str(run_dir)!r}, trust_remote_code={detects})
        options = {{"threshold": 0.05}} if {detects} else {{}}
        results = [predict(file, **options) for file in {list(map(str, files))}]
        if {task == "image-segmentation"}:
            results = [[segment["label"] for segment in result] for result in results]
        print(json.dumps(results))
        """
    predictions = json.loads(run_python(code, without_package=True).splitlines()[-1])
    if task == "image-classification":
        correct = [top[0]["label"] == file.parent.name for file, top in zip(files, predictions, strict=True)]
        assert np.mean(correct) == read_results(run_dir)["metrics"]["accuracy"]
    elif task == "image-segmentation":
        ours = mobilevit_hf.pipeline(task, str(run_dir))
        for file, labels in zip(files, predictions, strict=True):
            assert labels == [segment["label"] for segment in ours(str(file))]
    else:
        ours = mobilevit_hf.pipeline(task, str(run_dir))
        for file, detections in zip(files, predictions, strict=True):
            expected = ours(str(file), threshold=0.05)
            assert [d["label"] for d in detections] == [d["label"] for d in expected]
            assert [d["score"] for d in detections] == pytest.approx([d["score"] for d in expected], abs=1e-5)
        assert any(predictions)
        assert {d["label"] for detections in predictions for d in detections} <= set(CLASSES)


def test_dataset_without_splits(small_datasets, initial_checkpoint, mobilevit, no_plots, tmp_path, monkeypatch):
    """Evaluation uses the same held-out images; each run gets its own output directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_datasets["image-classification"] / "train", tmp_path / "My shapes!")
    for folder in ("runs/My-shapes", "runs/My-shapes-2"):
        code, out, err = mobilevit("train", "My shapes!", "--model", initial_checkpoint, *SMALL)
        assert code == 0
        assert out.split() == [folder]
        assert "No validation split" in err
        assert {path.name for path in (tmp_path / folder).iterdir()} > FILES
    results = read_results(tmp_path / folder)
    code, out, _ = mobilevit("evaluate", folder, "My shapes!", "--json")
    measured = json.loads(out)
    assert results["num_images"] == measured["num_images"] < 6
    assert results["metrics"]["per_class"] == measured["metrics"]["per_class"]


def test_without_validation_split_the_last_weights_are_saved(
    task, small_datasets, initial_checkpoint, mobilevit, no_plots, tmp_path
):
    folder = tmp_path / "data"
    shutil.copytree(small_datasets[task], folder)
    for name in ("val", "valannot", "validation"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "annotations/instances_val.json").unlink(missing_ok=True)
    words = ("--model", initial_checkpoint, "--output-dir", tmp_path / "run", *SMALL)
    code, _, err = mobilevit("train", folder, *words, "--validation-fraction", 0, "--ema-decay", 0)
    assert code == 0, err
    assert {path.name for path in (tmp_path / "run").iterdir() if path.suffix != ".py"} == FILES
    assert "best" not in read_results(tmp_path / "run")
    assert not [name for line in read_metrics(tmp_path / "run") for name in line if name.startswith("eval_")]
    model = load_file(tmp_path / "run/model.safetensors")
    trained = load_checkpoint(find_checkpoints(tmp_path / "run")[-1])["model"]
    assert model.keys() == trained.keys()
    assert all(torch.equal(value, trained[name]) for name, value in model.items())


# --- invalid images --------------------------------------------------------------------------------------------------


def test_corrupt_image_is_reported_and_skipped(initial_checkpoint, small_datasets, mobilevit, no_plots, tmp_path):
    shutil.copytree(small_datasets["image-classification"], tmp_path / "data")
    corrupt = tmp_path / "data/train/circle/004.png"
    corrupt.write_bytes(corrupt.read_bytes()[:300])
    words = ("--model", initial_checkpoint, "--output-dir", tmp_path / "run", *SMALL)
    code, _, err = mobilevit("train", tmp_path / "data", *words, "--max-steps", 6, "--eval-steps", 6)
    assert code == 0
    named = [line for line in err.splitlines() if "004.png" in line]
    assert len(named) == 1
    assert read_metrics(tmp_path / "run")[-1]["epoch"] == 1.0  # 23 images in 6 batches of 4
    assert read_results(tmp_path / "run")["num_images"] == 9


def test_too_many_corrupt_images_raise_and_nothing_is_written(small_datasets, mobilevit, tmp_path):
    shutil.copytree(small_datasets["image-classification"], tmp_path / "data")
    corrupt = sorted((tmp_path / "data/train/circle").iterdir())[:3]
    for path in corrupt:
        path.write_bytes(path.read_bytes()[:300])
    words = ("--model", "xxs", "--output-dir", tmp_path / "new", "--resume", "auto", *SMALL)
    code, out, err = mobilevit("train", tmp_path / "data", *words)
    assert (code, out) == (2, "")
    line = only_line(err)
    assert all(path.name in line for path in corrupt)
    assert "9.1%" in line
    assert "check-data" in line
    assert not (tmp_path / "new").exists()


# --- several processes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_script(tmp_path_factory):
    """Function that runs the script of a task, alone or with `accelerate launch` or `torchrun`."""

    def run(task, *words, processes=None):
        folder = tmp_path_factory.mktemp("process")
        launcher = ()
        if processes == 1:
            launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", 1)
        elif processes:
            launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes)
        command = (*launcher, SCRIPTS / SCRIPT_OF[task], *words)
        process = subprocess.run(
            [sys.executable, *map(str, command)],
            env=os.environ
            | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "ACCELERATE_USE_CPU": "true"}
            | {"PYTHONPATH": str(PACKAGE_PARENT), "OMP_NUM_THREADS": "1"},
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        assert "Traceback" not in process.stderr
        return process

    return run


@pytest.fixture(scope="module")
def process_runs(task, run_dir, small_datasets, run_script, tmp_path_factory):
    """Folder of the same run by one process and by two; the averaged weights stay the initial ones."""
    folder = tmp_path_factory.mktemp("process_runs")
    constant = ("--ema-decay", 1 - 1e-12, "--no-ema-warmup")
    intervals = ("--max-steps", 4, "--eval-steps", 2, "--save-steps", 1, "--save-total-limit", 9)
    words = (*SMALL, "--model", run_dir, *intervals, *constant)
    for processes in (None, 2):
        output_dir = folder / str(processes or 1)
        process = run_script(task, small_datasets[task], *words, "--output-dir", output_dir, processes=processes)
        assert process.stdout.split() == [str(output_dir)]
        assert process.stderr.count("done: ") == 1
    return folder


@pytest.mark.slow
def test_two_processes_evaluate_like_one(task, run_dir, small_datasets, process_runs, mobilevit):
    one, two = (
        [
            {name: value for name, value in line.items() if re.fullmatch(r"eval_\w+(?<!_low)(?<!_high)", name)}
            for line in read_metrics(process_runs / number)
            if "loss" not in line
        ]
        for number in ("1", "2")
    )
    assert len(one) == len(two) == 2
    evaluation = json.loads(mobilevit("evaluate", run_dir, small_datasets[task], "--json")[1])
    for line in (*one, *two):
        values = {name.removeprefix("eval_"): value for name, value in line.items()}
        # A detector's loss is normalized by the matched anchors of a batch, which differs in its images.
        losses = {name: values.pop(name) for name in evaluation["losses"]}
        assert losses == pytest.approx(evaluation["losses"], rel=0.02)
        assert values == pytest.approx({name: evaluation["metrics"][name] for name in values}, abs=1e-6)
    batches = {"image-classification": 24, "object-detection": 12, "image-segmentation": 12}[task] // 4
    epochs = [[line["epoch"] for line in read_metrics(process_runs / n)][-1] for n in ("1", "2")]
    assert epochs == pytest.approx([4 / batches, 4 / -(-batches // 2)], abs=0.26)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_three_processes_resume_bit_equal(accumulation, small_datasets, initial_checkpoint, run_script, tmp_path):
    """Sums of three numbers depend on their order, unlike those of two; the shards differ in size."""
    options = {"--gradient-accumulation-steps": accumulation, "--max-steps": 4, "--save-steps": 2}
    words = (*SMALL, "--model", initial_checkpoint, *(word for option in options.items() for word in option))
    task = "image-classification"
    expected, resumed = tmp_path / "expected", tmp_path / "resumed"
    data = shutil.copytree(small_datasets[task], tmp_path / "data")
    sorted((data / "train").rglob("*.png"))[0].unlink()
    run_script(task, data, *words, "--output-dir", expected, processes=3)
    (resumed / "checkpoints").mkdir(parents=True)
    shutil.copy(expected / "checkpoints/step-00000002.pt", resumed / "checkpoints")
    run_script(task, data, *words, "--output-dir", resumed, "--resume", "auto", processes=3)
    assert (resumed / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    states = [load_checkpoint(find_checkpoints(folder)[-1]) for folder in (expected, resumed)]
    assert all(torch.equal(value, states[1]["model"][name]) for name, value in states[0]["model"].items())


@pytest.mark.slow
def test_two_processes_resume_bit_equal(task, process_runs, small_datasets, run_script, tmp_path):
    """Resume from the files that a run killed after its second step leaves."""
    expected, killed = process_runs / "2", tmp_path / "run"
    shutil.copytree(expected, killed)
    for path in (*find_checkpoints(killed)[2:], *killed.glob("*.png"), killed / "results.json"):
        path.unlink()
    words = ("--recipe", expected / "recipe.yaml", "--output-dir", killed, "--resume", "auto")
    process = run_script(task, small_datasets[task], *words, processes=2)
    assert "Resuming from step 2" in process.stderr
    for name in MODEL_FILES:
        assert (killed / name).read_bytes() == (expected / name).read_bytes(), name
    before, after = (load_checkpoint(find_checkpoints(folder)[-1]) for folder in (expected, killed))
    assert before["state"]["step"] == after["state"]["step"] == 4
    assert all(torch.equal(value, after["model"][name]) for name, value in before["model"].items())
    moments = [state["optimizer"]["state"] for state in (before, after)]
    assert all(torch.equal(value["exp_avg"], moments[1][index]["exp_avg"]) for index, value in moments[0].items())
    earlier = load_checkpoint(find_checkpoints(expected)[1])["model"]
    assert any(not torch.equal(value, earlier[name]) for name, value in after["model"].items())


# --- accuracy --------------------------------------------------------------------------------------------------------


def draw_shape(shape, seed, side=128):
    """Draw a disc or square of random size, position and color on a random background, with noise."""
    rng = np.random.default_rng(seed)
    background = rng.integers(0, 256, 3)
    color = background
    while abs(color - background).sum() < 120:
        color = rng.integers(0, 256, 3)
    image = Image.new("RGB", (side, side), tuple(background.tolist()))
    length = rng.uniform(0.3, 0.7) * side
    x, y = rng.uniform(0, side - length, 2)
    draw = ImageDraw.Draw(image)
    draw_function = draw.ellipse if shape == "disc" else draw.rectangle
    draw_function((x, y, x + length, y + length), fill=tuple(color.tolist()))
    noisy = np.asarray(image) + rng.normal(0, 12, (side, side, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.mark.slow
def test_defaults_learn_from_scratch_from_few_images(run_python, tmp_path):
    """60 images of discs and of squares each, without options, Hub or pretrained weights."""
    for index, shape in enumerate(("disc", "square")):
        for folder, count, seed in (("shapes", 60, 0), ("new", 50, 10_000)):
            (tmp_path / folder / shape).mkdir(parents=True)
            for i in range(count):
                draw_shape(shape, seed + 1000 * index + i).save(tmp_path / folder / shape / f"{i:03}.jpg")
    code = f"""
        import os
        from mobilevit_hf import cli

        os.chdir({str(tmp_path)!r})
        sys.argv = ["mobilevit", "train", "shapes"]
        cli.main()
        """
    assert run_python(code).split() == ["runs/shapes"]
    code = f"""
        import pathlib, transformers
        classify = transformers.pipeline("image-classification", model={str(tmp_path / "runs/shapes")!r})
        files = sorted(pathlib.Path({str(tmp_path / "new")!r}).glob("*/*.jpg"))
        print(len(files), sum(classify(str(file))[0]["label"] == file.parent.name for file in files))
        """
    count, correct = map(int, run_python(code, without_package=True).split())
    assert count == 100
    assert correct >= 95


def test_figure_of_a_cross_validation_has_its_interval_and_number_of_images(capfd, monkeypatch, tmp_path):
    folds = CrossValidationRecord(metrics={"accuracy": [0.7, 0.9]}, std={"accuracy": 0.1414}, num_images=[10, 10])
    result = TrainingResult(tmp_path, "accuracy", 0.8, steps=4, seconds=61.0, cross_validation=folds)
    monkeypatch.setattr("mobilevit_hf.training.trainer.train", lambda *args: result)
    make_command()(data="data", output_dir=str(tmp_path))
    # Wilson score interval of 16 of 20.
    expected = "done: 4 steps in 1:01, accuracy 0.800 ± 0.141 (95% CI 0.584 to 0.919) on 20 images"
    assert expected in " ".join(capfd.readouterr().err.split())
