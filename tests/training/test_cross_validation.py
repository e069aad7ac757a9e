"""Cross-validation: folds, their metrics, the kept model, interruption and time limit."""

import csv
import html
import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from toy_datasets import draw_classification
from training_runs import StepCallback, read_results
from transformers import AutoConfig, AutoModelForImageClassification

from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.records import ResultsRecord, write_record
from mobilevit_hf.training import cross_validation, trainer
from mobilevit_hf.training.cross_validation import select_fold, summarize_folds
from mobilevit_hf.training.signals import StoppedError
from mobilevit_hf.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")
SHORT = {"max_steps": 2, "eval_steps": 1, "save_steps": 1, "image_size": 64}


@pytest.fixture
def fold_data(monkeypatch):
    """List of the dataset of each model that is trained."""
    datasets = []

    def record(*args):
        data = select_fold(*args)
        datasets.append(data.dataset)
        return data

    monkeypatch.setattr(cross_validation, "select_fold", record)
    return datasets


@pytest.fixture(scope="module")
def tested_dataset(tmp_path_factory):
    """Classification dataset with 8 training, 4 validation and 4 test images."""
    folder = draw_classification(tmp_path_factory.mktemp("tested") / "data", train=8, validation=4)
    others = draw_classification(folder.parent / "other", train=0, validation=8)
    (others / "validation").rename(folder / "test")
    for path in sorted((folder / "test").rglob("*.png"))[::2]:  # those that are not in the validation split
        path.unlink()
    return folder


def read_predictions(folder):
    """Return the rows of `predictions.csv`, by file."""
    with (folder / "predictions.csv").open(newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["image-classification", "object-detection"])
def test_each_image_is_measured_once_by_a_model_without_it(task, fold_data, make_arguments, tmp_path):
    result = train(make_arguments(tmp_path / "run", task, cross_validation=3, **SHORT))
    *folds, final = fold_data
    pool = sorted(sample.name for sample in final.splits["train"])
    assert len(folds) == 3
    assert len(pool) == 24  # of the training and the validation split
    assert sorted(sample.name for fold in folds for sample in fold.splits["validation"]) == pool
    for fold in folds:
        assert sorted(sample.name for split in fold.splits.values() for sample in split) == pool

    saved, own = read_results(tmp_path / "run"), [read_results(p) for p in sorted((tmp_path / "run/folds").glob("f*"))]
    metric = result.metric
    values = [record["metrics"][metric] for record in own]
    assert saved["cross_validation"]["metrics"][metric] == values
    assert saved["metrics"][metric] == saved["best"] == result.best == pytest.approx(sum(values) / 3)
    assert (saved["split"], saved["num_images"]) == ("cross-validation", 24)
    assert "per_class" not in saved["metrics"]
    command = json.loads((tmp_path / "run/run.json").read_text())
    assert command["arguments"]["cross_validation"] == 3
    assert "--cross-validation 3" in command["command"]
    assert result.pooled.num_images == 24
    if task == "object-detection":
        assert sorted(image.name for image in result.pooled.predictions) == pool
        assert result.pooled.threshold == pytest.approx(sum(record["threshold"] for record in own) / 3, abs=6e-4)
        thresholds = [record["threshold"] for record in own]
        config = AutoConfig.from_pretrained(tmp_path / "run")
        assert config.recommended_threshold == pytest.approx(sum(thresholds) / 3, abs=6e-4)


def test_folds_keep_the_last_weights_and_measure_no_test_images(tested_dataset, fold_data, make_arguments, tmp_path):
    result = train(make_arguments(tmp_path / "run", data=str(tested_dataset), cross_validation=2, **SHORT))
    *folds, final = fold_data
    assert all({*fold.splits} == {"train", "validation"} for fold in folds)
    assert {*final.splits} == {"train", "test"}
    assert result.test.num_images == 4
    for folder in (tmp_path / "run/folds").glob("fold-*"):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        last = [line for line in lines if "eval_accuracy" in line][-1]
        assert last["step"] == 2
        assert read_results(folder)["best"] == last["eval_accuracy"]
        assert not (folder / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_finished_folds_are_not_repeated_and_resume_is_bit_equal(number, make_arguments, monkeypatch, tmp_path):
    make = partial(make_arguments, cross_validation=2, **SHORT)
    train(make(tmp_path / "expected"))
    parts = []

    def stop(progress):
        parts.append(progress.part)
        name = ("fold 1", "fold 2", "model")[number]
        if [part.startswith(name) for part in parts].count(True) == 1 and progress.part.startswith(name):
            os.kill(os.getpid(), signal.SIGTERM)  # a second signal would end the process

    callback = StepCallback()
    callback.on_progress = stop
    with pytest.raises(StoppedError, match=r"--resume auto --cross-validation 2 --output-dir .*run$"):
        train(make(tmp_path / "run"), callback)
    first = (tmp_path / "run/folds/fold-1/results.json").stat().st_mtime_ns
    resumed = StepCallback()
    resumed.on_progress = lambda progress: parts.append(progress.part)
    parts.clear()
    train(make(tmp_path / "run", resume="auto"), resumed)
    assert not any(part.startswith("fold 1") for part in parts)
    assert (tmp_path / "run/folds/fold-1/results.json").stat().st_mtime_ns == first
    models = [AutoModelForImageClassification.from_pretrained(tmp_path / name) for name in ("run", "expected")]
    assert all(map(torch.equal, *(model.state_dict().values() for model in models)))
    saved, expected = (read_results(tmp_path / name) for name in ("run", "expected"))
    assert saved["cross_validation"] == expected["cross_validation"]
    with pytest.raises(ValueError, match="this run is complete"):
        train(make(tmp_path / "run", resume="auto"))
    for changes in ({"cross_validation": 3}, {"max_steps": 5}):
        with pytest.raises(ValueError, match=f"other arguments: {next(iter(changes))}"):
            train(make(tmp_path / "run", resume="auto", **changes))


def test_time_limit_is_divided(tested_dataset, make_arguments, monkeypatch, tmp_path):
    limits = []

    def train_part(arguments, callback, data, *, max_seconds, cross_validation=None, pooled=None):
        limits.append(max_seconds)
        assert arguments.max_minutes == 1
        record = ResultsRecord(metric="accuracy", num_images=4, metrics={"accuracy": 0.5}, seconds=15.0)
        if cross_validation is None:
            write_record(Path(arguments.output_dir) / "results.json", record)

    monkeypatch.setattr(trainer, "train_part", train_part)
    monkeypatch.setattr(cross_validation, "evaluate_folds", lambda *args, **options: None)
    train(
        make_arguments(tmp_path / "run", data=str(tested_dataset), cross_validation=3, **SHORT | {"max_minutes": 1.0})
    )
    assert limits == pytest.approx([15, 15, 15, 15], abs=2)  # some seconds pass before the first


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"cross_validation": 1}, "cross_validation: got 1, expected 2 or more folds"),
        ({"cross_validation": 2, "early_stopping_patience": 3}, "cross_validation: got 2 together with early_stop"),
        (
            {"cross_validation": 2, "streaming": True, "max_steps": 3},
            "cross_validation: got 2 together with streaming",
        ),
        ({"cross_validation": 99}, "cross_validation: got 99 folds for 24 images, expected at least one image per"),
    ],
)
def test_invalid_options_raise(values, expected, make_arguments, tmp_path):
    with pytest.raises(ValueError, match=expected):
        train(make_arguments(tmp_path / "run", **values))


def test_several_processes_raise(make_arguments, tmp_path):
    accelerator = type("Processes", (), {"num_processes": 2})()
    with pytest.raises(ValueError, match="got 2 processes, expected one"):
        cross_validation.cross_validate(make_arguments(tmp_path, cross_validation=2), accelerator, None, None, 0.0)


def test_similar_images_stay_in_one_fold_and_rare_classes_are_named(fold_data, make_arguments, tmp_path):
    folder = draw_classification(tmp_path / "data", train=8, validation=2)
    for source in (folder / "train/circle/000.png", folder / "train/circle/002.png"):
        for quality in (70, 80):
            Image.open(source).save(source.with_name(f"{source.stem}-{quality}.jpg"), quality=quality)
    (folder / "train/star").mkdir()
    Image.effect_noise((64, 64), 99).convert("RGB").save(folder / "train/star/0.png")
    callback = StepCallback()
    train(make_arguments(tmp_path / "run", data=str(folder), cross_validation=2, **SHORT), callback)
    for fold in fold_data[:2]:
        names = [sample.name for sample in fold.splits["validation"]]
        for stem in ("000", "002"):
            copies = [name for name in names if name.startswith(f"train/circle/{stem}")]
            assert len(copies) in (0, 3)
    assert any("look alike" in text for text in callback.messages)
    assert any("star (1)" in text for text in callback.messages)


def test_report_shows_the_predictions_of_all_folds(tested_dataset, make_arguments, tmp_path):
    """Each image is predicted as in the report of the fold that it belongs to; the test split has its own figures."""
    run = tmp_path / "run"
    result = train(make_arguments(run, data=str(tested_dataset), cross_validation=3, **SHORT))
    rows = read_predictions(run)
    of_folds = [read_predictions(run / f"folds/fold-{number}") for number in (1, 2, 3)]
    assert len(rows) == 10  # 2 of the 12 images are also test images
    assert {name: row["prediction"] for name, row in rows.items()} == {
        name: row["prediction"] for fold in of_folds for name, row in fold.items()
    }
    right, images = (
        [sum(row["correct"] == "true" for row in fold.values()) for fold in of_folds],
        [*map(len, of_folds)],
    )
    assert result.pooled.metrics["accuracy"] == sum(right) / 10
    assert sum(row["correct"] == "true" for row in rows.values()) == sum(right)
    labels = {name: name.split("/")[1] for name in rows}
    assert {name: row["target"] for name, row in rows.items()} == labels  # names and targets are those of one image
    page = html.unescape((run / "report.html").read_text())
    for text in (
        "Cross-validation on",
        "10 images",
        "Test split: 4 images",
        "Likely mislabeled images",
        "Calibration",
    ):
        assert text in page
    mean = sum(number / count for number, count in zip(right, images, strict=True)) / 3
    assert f"{mean:.1%} ± " in page
    for number in (1, 2, 3):
        assert f'href="folds/fold-{number}/report.html"' in page
    fold = (run / "folds/fold-1/report.html").read_text()
    assert "best of" not in fold
    assert "The saved weights are the last, of step 2" in fold


def test_metrics_of_folds_without_objects_are_left_out():
    records = [
        ResultsRecord(metric="map", num_images=2, metrics={"map": value, "map_small": -1.0, "per_class": {"a": value}})
        for value in (0.5, -1.0, 0.3)
    ]
    record = summarize_folds(records)
    assert record.metrics == {"map": [0.5, 0.3]}
    assert record.std == {"map": pytest.approx(0.1414, abs=1e-4)}
    assert record.num_images == [2, 2, 2]


def test_validation_split_is_not_split_off(fold_data, make_arguments, tmp_path):
    folder = draw_classification(tmp_path / "data", train=8, validation=0)
    assert "validation" in load_dataset(folder).splits
    train(make_arguments(tmp_path / "run", data=str(folder), cross_validation=2, **SHORT))
    assert len(fold_data[-1].splits["train"]) == 8
    assert not fold_data[-1].validation_cut_off
