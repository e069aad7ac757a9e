"""mobilevit train as a person uses it: images in, a model out the other commands take, by one process or two."""

import json
import math
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import PACKAGE_PARENT
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from toy_datasets import CLASSES
from training_runs import MODEL_FILES, SCRIPT_OF, SCRIPTS, SMALL, only_line, read_arguments, read_metrics, read_results

import mobilevit_hf
from mobilevit_hf import cli
from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.evaluation import EvaluationResult
from mobilevit_hf.training.arguments import TrainArguments
from mobilevit_hf.training.checkpoint import find_checkpoints, load_checkpoint
from mobilevit_hf.training.dataloader import TrainingDataLoader
from mobilevit_hf.training.initialization import create_classifier, create_detector
from mobilevit_hf.training.reports import write_reports
from mobilevit_hf.training.state import TrainingResult
from mobilevit_hf.training.tasks import TRAINING_TASKS

FILES = MODEL_FILES | {"metrics.jsonl", "recipe.yaml", "results.json", "run.json", "curves.png", "checkpoints"}


@pytest.fixture(scope="module", params=list(SCRIPT_OF))
def task(request):
    return request.param


@pytest.fixture(scope="module")
def run(task, small_datasets, initial_checkpoint, tmp_path_factory):
    """The folder of a training that an option or two made short."""
    folder = tmp_path_factory.mktemp("run") / task
    options = (*SMALL, "--max-steps", 12, "--eval-steps", 0.5, "--logging-steps", 4, "--learning-rate", 0.01)
    words = ("train", small_datasets[task], "--model", initial_checkpoint, "--output-dir", folder, *options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mobilevit_hf.cli.train.tune_allocator", lambda: True)
        cli.app(list(map(str, words)), standalone_mode=False)
    return folder


def validation_images(folder):
    return sorted(path for name in ("val", "validation") for path in (folder / name).rglob("*.png"))


def flat(figures, prefix=""):
    """Nested figures as one dict."""
    found = {}
    for name, value in figures.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


# --- what is left ----------------------------------------------------------------------------------------------------


def test_the_folder_holds_all_there_is_to_know(task, run, small_datasets):
    figure = "confusion_matrix.png" if task == "image-classification" else "average_precision.png"
    code = {path.name for path in run.glob("*.py")}
    assert bool(code) == (task == "object-detection")
    assert {path.name for path in run.iterdir()} - code == FILES | {figure, "mistakes.png", "samples.png"}
    for path in run.glob("*.png"):
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 50
            assert len(set(image.convert("L").resize((64, 64)).getdata())) > 4, path.name

    lines = read_metrics(run)
    losses = [line for line in lines if "loss" in line]
    assert [line["step"] for line in losses] == [4, 8, 12]
    for line in losses:
        assert line.keys() == {
            *("step", "progress", "epoch", "loss", "learning_rate", "images_per_second", "seconds", "waiting_for_data")
        }
        assert all(math.isfinite(value) for value in line.values())
        assert line["progress"] == pytest.approx(line["step"] / 12)
        assert 0 <= line["waiting_for_data"] <= 1
        assert line["learning_rate"] <= 0.01
    per_epoch = -(-{"image-classification": 24, "object-detection": 12}[task] // 4)
    assert losses[-1]["epoch"] == pytest.approx(12 / per_epoch, abs=1e-3)

    metric = {"image-classification": "accuracy", "object-detection": "map"}[task]
    measured = [line for line in lines if "eval_" + metric in line]
    assert [line["step"] for line in measured] == [6, 12]
    results = read_results(run)
    assert (results["metric"], results["steps"], results["split"]) == (metric, 12, "validation")
    assert results["num_images"] == len(validation_images(small_datasets[task]))
    assert results["best"] == max(line["eval_" + metric] for line in measured) == results["metrics"][metric]
    assert 0 < results["best"] < 1


def test_its_recipe_makes_the_same_again(task, run, small_datasets, mobilevit, no_plots, tmp_path):
    words = ("train", small_datasets[task], "--recipe", run / "recipe.yaml", "--output-dir", tmp_path / "again")
    assert mobilevit(*words)[0] == 0
    assert read_arguments(tmp_path / "again") == read_arguments(run) | {"output_dir": str(tmp_path / "again")}
    weights = [(folder / "model.safetensors").read_bytes() for folder in (run, tmp_path / "again")]
    assert weights[0] == weights[1]
    assert read_results(tmp_path / "again")["metrics"] == read_results(run)["metrics"]


def test_evaluate_says_what_the_training_said(task, run, small_datasets, mobilevit):
    code, out, _ = mobilevit("evaluate", run, small_datasets[task], "--json")
    assert code == 0
    measured, results = json.loads(out), read_results(run)
    assert (measured["split"], measured["num_images"]) == ("validation", results["num_images"])
    assert flat(measured["metrics"]) == pytest.approx(flat(results["metrics"]), abs=1e-6)
    if task == "object-detection":
        best = measured["best_threshold"]["value"]
        assert results["threshold"] == pytest.approx(best, abs=1e-5)
        assert json.loads((run / "config.json").read_text())["recommended_threshold"] == round(best, 3)


def test_predict_takes_it(task, run, small_datasets, mobilevit):
    files = validation_images(small_datasets[task])
    code, out, err = mobilevit("predict", *files, "--model", run, "--json")
    assert (code, err) == (0, "")
    answers = [json.loads(line)["predictions"] for line in out.splitlines()]
    if task == "image-classification":
        right = [answer[0]["label"] == file.parent.name for file, answer in zip(files, answers, strict=True)]
        assert np.mean(right) == read_results(run)["metrics"]["accuracy"]
        return
    _, out, _ = mobilevit("predict", *files, "--model", run, "--json", "--threshold", 0)
    every = [json.loads(line)["predictions"] for line in out.splitlines()]
    threshold = json.loads((run / "config.json").read_text())["recommended_threshold"]
    assert answers == [[found for found in each if found["score"] > threshold] for each in every]
    assert 0 < sum(map(len, answers)) < sum(map(len, every))


def test_a_detector_that_recommends_no_threshold_is_asked_for_one_half(run, small_datasets, mobilevit, tmp_path):
    if not (run / "average_precision.png").exists():
        pytest.skip("a classifier has no threshold")
    shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "run/config.json").write_text(json.dumps(config | {"recommended_threshold": None}))
    file = validation_images(small_datasets["object-detection"])[0]
    half = mobilevit("predict", "--json", file, "--model", run, "--threshold", 0.5)[1]
    assert mobilevit("predict", "--json", file, "--model", tmp_path / "run")[1] == half
    assert config["recommended_threshold"] != 0.5


def test_stock_transformers_runs_it(task, run, small_datasets, run_python):
    """Without this package; the code of a detector comes with it."""
    code = f"""
        import json, transformers
        predict = transformers.pipeline({task!r}, model={str(run)!r}, trust_remote_code={task == "object-detection"})
        options = {{"threshold": 0.05}} if {task == "object-detection"} else {{}}
        print(json.dumps([predict(file, **options) for file in {list(map(str, validation_images(small_datasets[task])))}]))
        """
    answers = json.loads(run_python(code, without_package=True).splitlines()[-1])
    files = validation_images(small_datasets[task])
    if task == "image-classification":
        right = [answer[0]["label"] == file.parent.name for file, answer in zip(files, answers, strict=True)]
        assert np.mean(right) == read_results(run)["metrics"]["accuracy"]
    else:
        ours = mobilevit_hf.pipeline(task, str(run))
        for file, answer in zip(files, answers, strict=True):
            expected = ours(str(file), threshold=0.05)
            assert [found["label"] for found in answer] == [found["label"] for found in expected]
            assert [found["score"] for found in answer] == pytest.approx([f["score"] for f in expected], abs=1e-5)
        assert any(answers)
        assert {found["label"] for answer in answers for found in answer} <= set(CLASSES)


def test_without_mistakes_there_is_no_image_of_them(tmp_path):
    metrics = {"accuracy": 1.0, "macro_f1": 1.0, "per_class": {}}
    evaluation = EvaluationResult("image-classification", metrics, {}, None, 9.0, 8, confusion=np.diag([4, 4]))
    written = write_reports(TrainingResult(tmp_path, "accuracy", 1.0, 9, 60.0, evaluation), [], ["dark", "light"])
    assert set(written) == set(tmp_path.iterdir()) == {tmp_path / "results.json", tmp_path / "confusion_matrix.png"}


def test_folders_without_splits(small_datasets, initial_checkpoint, mobilevit, no_plots, tmp_path, monkeypatch):
    """What was cut off for validation is what is measured later; a folder of its own for each training."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_datasets["image-classification"] / "train", tmp_path / "My shapes!")
    for folder in ("runs/My-shapes", "runs/My-shapes-2"):
        code, out, err = mobilevit("train", "My shapes!", "--model", initial_checkpoint, *SMALL)
        assert code == 0
        assert out.split() == [folder]
        assert "no validation split" in err
        assert {path.name for path in (tmp_path / folder).iterdir()} > FILES
    results = read_results(tmp_path / folder)
    code, out, _ = mobilevit("evaluate", folder, "My shapes!", "--json")
    measured = json.loads(out)
    assert results["num_images"] == measured["num_images"] < 6
    assert results["metrics"]["per_class"] == measured["metrics"]["per_class"]


def test_without_validation(task, small_datasets, initial_checkpoint, mobilevit, no_plots, tmp_path):
    """Nothing is measured, and the last weights are kept."""
    folder = tmp_path / "data"
    shutil.copytree(small_datasets[task], folder)
    shutil.rmtree(folder / ("val" if task == "object-detection" else "validation"))
    (folder / "annotations/instances_val.json").unlink(missing_ok=True)
    words = (
        "--model",
        initial_checkpoint,
        "--output-dir",
        tmp_path / "run",
        *SMALL,
        "--validation-fraction",
        0,
        "--ema-decay",
        0,
    )
    code, _, err = mobilevit("train", folder, *words)
    assert code == 0, err
    assert {path.name for path in (tmp_path / "run").iterdir() if path.suffix != ".py"} == FILES
    assert read_results(tmp_path / "run")["best"] is None
    assert not [name for line in read_metrics(tmp_path / "run") for name in line if name.startswith("eval_")]
    model = load_file(tmp_path / "run/model.safetensors")
    trained = load_checkpoint(find_checkpoints(tmp_path / "run")[-1])["model"]
    assert model.keys() == trained.keys()
    assert all(torch.equal(value, trained[name]) for name, value in model.items())


# --- bad data --------------------------------------------------------------------------------------------------------


def test_a_corrupt_image_is_named_and_left_out(initial_checkpoint, small_datasets, mobilevit, no_plots, tmp_path):
    shutil.copytree(small_datasets["image-classification"], tmp_path / "data")
    corrupt = tmp_path / "data/train/circle/004.png"
    corrupt.write_bytes(corrupt.read_bytes()[:300])
    words = (
        *SMALL,
        "--max-steps",
        6,
        "--eval-steps",
        6,
        "--model",
        initial_checkpoint,
        "--output-dir",
        tmp_path / "run",
    )
    code, _, err = mobilevit("train", tmp_path / "data", *words)
    assert code == 0
    named = [line for line in err.splitlines() if "004.png" in line]
    assert len(named) == 1
    assert read_metrics(tmp_path / "run")[-1]["epoch"] == 1.0  # 23 images in 6 batches of 4
    assert read_results(tmp_path / "run")["num_images"] == 9


def test_too_many_bad_images_are_named_and_nothing_is_written(run, small_datasets, mobilevit, tmp_path):
    shutil.copytree(small_datasets["image-classification"], tmp_path / "data")
    corrupt = sorted((tmp_path / "data/train/circle").iterdir())[:3]
    for path in corrupt:
        path.write_bytes(path.read_bytes()[:300])
    shutil.copytree(run, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for folder in ("new", "run"):
        words = ("--output-dir", tmp_path / folder, "--resume", "auto", *SMALL)
        code, out, err = mobilevit("train", tmp_path / "data", *words)
        assert (code, out) == (2, "")
        line = only_line(err)
        assert all(path.name in line for path in corrupt)
        assert "9.1%" in line
        assert "check-data" in line
    assert not (tmp_path / "new").exists()
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


# --- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multi_scale", ["on", "progressive", "off"])
def test_all_processes_have_batches_of_one_size_and_images_of_their_own(
    task, multi_scale, small_datasets, initial_checkpoint
):
    options = {
        "data": str(small_datasets[task]),
        "model": str(initial_checkpoint),
        "image_size": 128,
        "per_device_train_batch_size": 4,
    }
    arguments = TrainArguments(**options, multi_scale=multi_scale, dataloader_num_workers=0).for_task(task)
    dataset = load_dataset(str(small_datasets[task]))
    begin = create_classifier if task == "image-classification" else create_detector
    parts = [
        TrainingDataLoader(
            arguments,
            TRAINING_TASKS[task](arguments, dataset),
            begin(arguments, dataset.classes, None),
            SimpleNamespace(process_index=rank, num_processes=2, device=torch.device("cpu")),
        )
        for rank in range(2)
    ]
    shapes, orders = set(), set()
    for epoch in range(4):
        names = []
        for batches in zip(*(part.epoch(epoch, 0, epoch / 4) for part in parts), strict=True):
            sizes = {tuple(batch["pixel_values"].shape) for _, batch in batches}
            assert len(sizes) == 1
            shapes |= sizes
            first, second = (part.names(draws) for part, (draws, _) in zip(parts, batches, strict=True))
            assert not set(first) & set(second)
            assert len(first) == len(second) == next(iter(sizes))[0]
            names += first + second
        assert set(names) == {sample.name for sample in dataset.splits["train"]}
        orders.add(tuple(names))
    assert len(orders) == 4
    sides = {shape[2] for shape in shapes}
    allowed = {"on": {96, 128, 160}, "progressive": {96, 128}, "off": {128}}[multi_scale]
    assert sides <= allowed
    assert len(sides) > 1 or multi_scale == "off"


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
def launched(task, run, small_datasets, run_script, tmp_path_factory):
    """The folders of one training by one process and by two, where what is measured stays what it began with."""
    folder = tmp_path_factory.mktemp("launched")
    still = ("--ema-decay", 1 - 1e-12, "--no-ema-warmup")  # an average in which steps count for nothing
    words = (*SMALL, "--model", run, "--max-steps", 4, "--eval-steps", 2, "--save-steps", 1, "--save-total-limit", 9)
    for processes in (None, 2):
        to = folder / str(processes or 1)
        told = run_script(task, small_datasets[task], *words, *still, "--output-dir", to, processes=processes)
        assert told.stdout.split() == [str(to)]
        assert told.stderr.count("done: ") == 1
    return folder


@pytest.mark.slow
def test_two_processes_measure_what_one_does(task, run, small_datasets, launched, mobilevit):
    one, two = (
        [
            {name: value for name, value in line.items() if name.startswith("eval_")}
            for line in read_metrics(launched / number)
            if "loss" not in line
        ]
        for number in ("1", "2")
    )
    assert len(one) == len(two) == 2
    measured = json.loads(mobilevit("evaluate", run, small_datasets[task], "--json")[1])["metrics"]
    for line in (*one, *two):
        assert line
        assert line == pytest.approx({name: measured[name.removeprefix("eval_")] for name in line}, abs=1e-6)
    batches = {"image-classification": 24, "object-detection": 12}[task] // 4
    epochs = [[line["epoch"] for line in read_metrics(launched / n)][-1] for n in ("1", "2")]
    assert epochs == pytest.approx([4 / batches, 4 / -(-batches // 2)], abs=0.26)


@pytest.mark.slow
def test_two_processes_go_on_where_they_were_killed(task, launched, small_datasets, run_script, tmp_path):
    """What a kill after the second step leaves: its checkpoint, and the model measured then."""
    whole, killed = launched / "2", tmp_path / "run"
    shutil.copytree(whole, killed)
    for path in (*find_checkpoints(killed)[2:], *killed.glob("*.png"), killed / "results.json"):
        path.unlink()
    words = ("--recipe", whole / "recipe.yaml", "--output-dir", killed, "--resume", "auto")
    told = run_script(task, small_datasets[task], *words, processes=2)
    assert "Going on from step 2" in told.stderr
    for name in MODEL_FILES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    before, after = (load_checkpoint(find_checkpoints(folder)[-1]) for folder in (whole, killed))
    assert before["state"]["step"] == after["state"]["step"] == 4
    assert all(torch.equal(value, after["model"][name]) for name, value in before["model"].items())
    moments = [state["optimizer"]["state"] for state in (before, after)]
    assert all(torch.equal(value["exp_avg"], moments[1][place]["exp_avg"]) for place, value in moments[0].items())
    start = load_checkpoint(find_checkpoints(whole)[1])["model"]
    assert any(not torch.equal(value, start[name]) for name, value in after["model"].items())  # it did train


# --- and it learns ---------------------------------------------------------------------------------------------------


def draw_shape(shape, seed, side=128):
    """A disc or a square of any size, place and color on a background of any color, with some noise."""
    chance = np.random.default_rng(seed)
    ground = chance.integers(0, 256, 3)
    color = ground
    while abs(color - ground).sum() < 120:
        color = chance.integers(0, 256, 3)
    image = Image.new("RGB", (side, side), tuple(ground.tolist()))
    length = chance.uniform(0.3, 0.7) * side
    x, y = chance.uniform(0, side - length, 2)
    draw = ImageDraw.Draw(image)
    draw_it = draw.ellipse if shape == "disc" else draw.rectangle
    draw_it((x, y, x + length, y + length), fill=tuple(color.tolist()))
    noisy = np.asarray(image) + chance.normal(0, 12, (side, side, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.mark.slow
def test_a_folder_is_all_it_needs(run_python, tmp_path):
    """Discs and squares from 60 images each, without an option, a Hub or pretrained weights."""
    for place, shape in enumerate(("disc", "square")):
        for folder, count, seed in (("shapes", 60, 0), ("new", 50, 10_000)):
            (tmp_path / folder / shape).mkdir(parents=True)
            for i in range(count):
                draw_shape(shape, seed + 1000 * place + i).save(tmp_path / folder / shape / f"{i:03}.jpg")
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
    count, right = map(int, run_python(code, without_package=True).split())
    assert count == 100
    assert right >= 95
