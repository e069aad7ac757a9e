"""Summary before the first step, and the warning about few validation images."""

import re

import pytest
import torch
from PIL import Image
from toy_datasets import draw_classification
from training_runs import SMALL, StepCallback

from mobilevit_hf.data.checks import DatasetReport, check_dataset
from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.training.summary import _describe_counts, warn_of_few_images
from mobilevit_hf.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")


class SummaryCallback(StepCallback):
    """Collects the summary, the messages with their kind, and the order of all calls."""

    def __init__(self):
        super().__init__()
        self.summary, self.kinds, self.calls = {}, [], []

    def on_start(self, summary):
        self.summary = dict(summary)
        self.calls.append("start")

    def on_message(self, text, kind="note"):
        super().on_message(text, kind)
        self.kinds.append((kind, text))

    def on_progress(self, progress):
        self.calls.append("step")


@pytest.mark.parametrize("task", ["image-classification", "object-detection", "image-segmentation"])
def test_summary_precedes_the_first_step(task, make_arguments, uneven_datasets, tmp_path):
    callback = SummaryCallback()
    train(make_arguments(tmp_path / "run", task, max_steps=2, eval_steps=1.0), callback)
    assert callback.calls[:2] == ["start", "step"]
    assert callback.calls.count("start") == 1
    summary = callback.summary
    assert summary["device"].startswith("cpu")
    assert f"{torch.get_num_threads()} thread" in summary["device"]
    assert summary["initial checkpoint"] == str(make_arguments(tmp_path).model)
    assert (summary["image size"], summary["batch size"]) == ("96x96 pixels", "4 images")
    assert summary["length"].startswith("2 steps (0.4 epochs)")
    report = check_dataset(load_dataset(uneven_datasets[task]))
    for split, images in (("train", 18), ("validation", 6)):
        assert summary[split].startswith(f"{images} images")
        counts = report.counts[split]
        if task == "image-segmentation":
            counts = {name: f"{100 * count / sum(counts.values()):.1f}%" for name, count in counts.items()}
        assert summary[split].endswith(": " + ", ".join(f"{name} {count}" for name, count in counts.items()))
        if task == "object-detection":
            assert f"{sum(counts.values())} objects" in summary[split]


def test_summary_and_result_are_in_a_redirected_log(small_datasets, initial_checkpoint, mobilevit, tmp_path):
    words = ("--model", initial_checkpoint, "--output-dir", tmp_path / "run", "--max-minutes", 9, "--eval-steps", 1)
    code, _, err = mobilevit("train", small_datasets["image-classification"], *SMALL, *words, "--logging-steps", 1)
    assert code == 0, err
    lines = err.splitlines()
    titles = [line.partition(":")[0] for line in lines]
    assert titles.index("device") < titles.index("length") < titles.index("warning") < titles.index("train", 5)
    assert "2 steps (0.333 epochs), at most 9 min" in next(line for line in lines if line.startswith("length"))
    columns = {re.match(r"[\w ]+: +", line).end() for line in lines[titles.index("device") :][:7]}
    assert len(columns) == 1  # aligned
    final = next(line for line in lines if line.startswith("done: "))
    assert re.search(
        r"2 steps in \d+:\d\d, accuracy 0\.\d{3} \(95% CI 0\.\d{3} to [01]\.\d{3}\) on 9 images, "
        r"best of 2 evaluations on validation\.$",
        final,
    )


def test_many_classes_are_summarized():
    counts = {f"class {index}": index for index in range(1, 101)}
    assert _describe_counts(counts) == "100 classes of 1 (class 1) to 100 (class 100), median 50.5"


def make_report(task, **num_samples):
    fields = dict.fromkeys(DatasetReport.__dataclass_fields__)
    return DatasetReport(**fields | {"task": task, "num_samples": num_samples})


def test_few_validation_images_raise_a_warning():
    text = warn_of_few_images(make_report("image-classification", train=50, validation=12, test=30))
    assert "12 images" in text
    assert "0.55 to 0.95" in text  # Wilson's interval of 10 of 12
    assert "--cross-validation 5 measures on all 62 images: it trains 6 times" in text
    assert "±0.07" in warn_of_few_images(make_report("object-detection", train=50, validation=12))
    for images in ({"validation": 100}, {}, {"test": 5}):
        assert warn_of_few_images(make_report("image-classification", train=50, **images)) is None


# --- test split ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tested_dataset(tmp_path):
    """Classification dataset with 8 training, 4 validation and 4 test images."""
    folder = draw_classification(tmp_path / "data", train=8, validation=4)
    others = draw_classification(tmp_path / "other", train=0, validation=8)
    (others / "validation").rename(folder / "test")
    for index in range(4):  # those of the validation split
        next((folder / "test").rglob(f"{index:03}.png")).unlink()
    return folder


def test_test_split_is_measured_once_with_the_saved_weights(tested_dataset, make_arguments, monkeypatch, tmp_path):
    import mobilevit_hf.training.trainer as module

    measured, evaluate = [], module.evaluate_model

    def record(model, processor, samples, *args, **kwargs):
        measured.append(sorted(sample.name for sample in samples))
        return evaluate(model, processor, samples, *args, **kwargs)

    monkeypatch.setattr(module, "evaluate_model", record)
    options = {"data": str(tested_dataset), "max_steps": 3, "eval_steps": 1, "learning_rate": 0.05}
    result = train(make_arguments(tmp_path / "run", **options))
    names = sorted(path.relative_to(tested_dataset).as_posix() for path in (tested_dataset / "test").rglob("*.png"))
    assert [some for some in measured if some[0].startswith("test")] == [names]
    assert measured[-1] == names

    import json

    saved = json.loads((tmp_path / "run/evaluation-test.json").read_text())
    assert (saved["data"], saved["split"], saved["num_images"]) == ("data", "test", 4)
    from mobilevit_hf import pipeline

    predict = pipeline("image-classification", str(tmp_path / "run"), device="cpu")
    correct = [predict(str(tested_dataset / name), top_k=1)[0]["label"] == name.split("/")[1] for name in names]
    assert saved["metrics"]["accuracy"] == result.test.metrics["accuracy"] == sum(correct) / 4


@pytest.mark.parametrize("damage", ["unlabeled", "unreadable", "removed"])
def test_unusable_test_split_does_not_lose_the_run(damage, tested_dataset, make_arguments, tmp_path):
    callback, files = SummaryCallback(), sorted((tested_dataset / "test").rglob("*.png"))
    if damage == "unlabeled":
        for file in files:
            file.rename(tested_dataset / "test" / f"{file.parent.name}-{file.name}")
    elif damage == "unreadable":
        files[0].write_bytes(files[0].read_bytes()[:100])
    else:

        def remove(progress):
            for file in files:
                file.unlink(missing_ok=True)

        callback.on_progress = remove
    result = train(make_arguments(tmp_path / "run", data=str(tested_dataset), max_steps=2), callback)
    assert result.test is None
    assert result.best is not None
    assert (tmp_path / "run/results.json").exists()
    assert not (tmp_path / "run/evaluation-test.json").exists()
    text = next(text for _, text in callback.kinds if "test split" in text)
    if damage != "unlabeled":
        assert ("warning", text) in callback.kinds
        assert files[0].relative_to(tested_dataset).as_posix() in text


def test_time_for_the_test_split_is_reserved(tested_dataset, make_arguments, monkeypatch, tmp_path):
    from types import SimpleNamespace

    from mobilevit_hf.training import state, trainer

    clock, evaluate = [0.0], trainer.evaluate_model
    for module in (trainer, state):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def evaluate_slowly(model, processor, samples, *args, **kwargs):
        clock[0] += len(samples)
        return evaluate(model, processor, samples, *args, **kwargs)

    monkeypatch.setattr(trainer, "evaluate_model", evaluate_slowly)

    def advance(progress):
        clock[0] += 1

    callback = SummaryCallback()
    callback.on_progress = advance
    options = {"data": str(tested_dataset), "max_steps": None, "max_minutes": 1.0, "eval_steps": 0.4}
    result = train(make_arguments(tmp_path / "run", **options), callback)
    assert result.test.num_images == 4
    assert 45 <= clock[0] <= 60
    clock[0] = 0
    for index in range(30):  # the test split would take more than half of a minute
        Image.new("RGB", (64, 64), (index, 0, 200)).save(tested_dataset / f"test/circle/new-{index}.png")
    result = train(make_arguments(tmp_path / "other_run", **options), callback)
    assert result.test is None
    assert clock[0] <= 60
    assert any("mobilevit evaluate" in text and "--split test" in text for text in callback.messages)
