"""Loading the metrics with `evaluate`, and behavior that all of them share."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import evaluate
import numpy as np
import pytest
from metric_cases import random_images
from PIL import Image

import mobilevit_hf
from mobilevit_hf.metrics import CocoMap, MeanIoU, TopKAccuracy, path

CLASSES = {"coco_map": CocoMap, "mean_iou": MeanIoU, "top_k_accuracy": TopKAccuracy}
EXAMPLES = {
    "coco_map": random_images(9, 6, 20),
    "mean_iou": (
        [np.eye(3, dtype=int)] * 5 + [np.ones((2, 4), dtype=int)],
        [np.eye(3, dtype=int)[::-1]] * 5 + [np.eye(2, 4, dtype=int)],
    ),
    "top_k_accuracy": ([0, 1, 2, 1, 0, 2], [0, 1, 1, 1, 2, 2]),
}
all_metrics = pytest.mark.parametrize("name", EXAMPLES)


def test_path_returns_module_folder():
    assert all(Path(path(name), f"{name}.py").is_file() for name in EXAMPLES)
    with pytest.raises(ValueError, match="'accuracy', expected one of top_k_accuracy, coco_map, mean_iou"):
        path("accuracy")


@all_metrics
def test_loaded_by_path_equals_class(load, name):
    predictions, references = EXAMPLES[name]
    loaded, direct = load(name), CLASSES[name](keep_in_memory=True)
    assert loaded.name == direct.name == name
    assert type(loaded) is not type(direct)
    results = [metric.compute(predictions=predictions, references=references) for metric in (loaded, direct)]
    assert results[0] == results[1]
    assert loaded.description
    assert loaded.citation
    assert "per_class" in loaded.compute.__doc__


@all_metrics
def test_unequal_numbers_of_predictions_and_references_raise(load, name):
    predictions, references = EXAMPLES[name]
    with pytest.raises(ValueError, match="predictions"):
        load(name).add_batch(predictions=predictions, references=references[1:])
    with pytest.raises(ValueError, match="references"):
        load(name).add_batch(predictions=predictions)


@all_metrics
def test_id2label_names_per_class_results(load, name):
    """Shared names get the class index; keys may be strings, as in a JSON file."""
    predictions, references = EXAMPLES[name]
    metric = load(name)
    by_index = metric.compute(predictions=predictions, references=references)["per_class"]
    names = {"0": "crane", "1": "crane", "2": "owl", "3": "owl of the night", "4": "fish"}
    expected = {0: "crane (0)", 1: "crane (1)", 2: "owl", 3: "owl of the night", 4: "fish"}
    result = metric.compute(predictions=predictions, references=references, id2label=names)
    assert result["per_class"] == {expected[index]: value for index, value in by_index.items()}


@all_metrics
def test_distributed_processes_equal_one_process(load, name):
    predictions, references = EXAMPLES[name]
    expected = load(name).compute(predictions=predictions, references=references)

    def work(process):
        metric = load(name, num_process=2, process_id=process, experiment_id="shared")
        metric.add_batch(predictions=predictions[process::2], references=references[process::2])
        return metric.compute()

    with ThreadPoolExecutor(2) as executor:
        results = list(executor.map(work, (0, 1)))
    assert results == [expected, None]


@pytest.mark.parametrize(
    ("name", "prediction", "reference"),
    [("mean_iou", np.eye(40, dtype=int), np.eye(40, dtype=int)), ("top_k_accuracy", np.arange(400.0), 3)],
)
def test_cache_holds_neither_pixels_nor_scores(load, name, prediction, reference, tmp_path):
    """The cache takes less than 200 bytes per image."""
    metric = load(name)
    metric.add_batch(predictions=[prediction] * 2000, references=[reference] * 2000)
    written = sum(file.stat().st_size for file in tmp_path.rglob("*.arrow"))
    assert 10_000 < written < 2000 * 200
    metric.compute()


def test_combine_accepts_loaded_metrics_and_classes(load):
    predictions, references = EXAMPLES["top_k_accuracy"]
    combined = evaluate.combine({"first": load("top_k_accuracy"), "second": TopKAccuracy()})
    for prediction, reference in zip(predictions, references, strict=True):
        combined.add(prediction, reference)
    expected = load("top_k_accuracy").compute(predictions=predictions, references=references)
    result = combined.compute()
    assert result == {f"{prefix}_{key}": value for prefix in ("first", "second") for key, value in expected.items()}
    detection = evaluate.combine([path("coco_map")])
    detection.add_batch(*EXAMPLES["coco_map"])
    assert detection.compute() == CocoMap().compute(
        predictions=EXAMPLES["coco_map"][0], references=EXAMPLES["coco_map"][1]
    )


def test_evaluator_of_image_classification(checkpoints):
    folder = str(checkpoints["image-classification"])
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (80, 90, 3)).astype(np.uint8)) for _ in range(4)]
    predicted = [output[0]["label"] for output in mobilevit_hf.pipeline("image-classification", folder)(images)]
    names = ["cat", "dog", "fish", "owl"]
    targets = [predicted[0], predicted[1], names[names.index(predicted[2]) - 1], predicted[3]]
    data = datasets.Dataset.from_dict(
        {"image": images, "label": targets},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}),
    )
    mapping = {name: index for index, name in enumerate(names)}
    for metric in (path("top_k_accuracy"), evaluate.combine([TopKAccuracy()])):
        result = evaluate.evaluator("image-classification").compute(folder, data, metric=metric, label_mapping=mapping)
        assert result["accuracy"] == 0.75


def test_changed_module_file_is_reloaded(tmp_path, evaluate_caches):
    """evaluate copies the module file; an edit takes effect although the older copy stays in the cache."""
    folder = shutil.copytree(path("coco_map"), tmp_path / "coco_map")
    file = folder / "coco_map.py"
    assert evaluate.load(str(folder)).compute(predictions=[], references=[])["map"] == -1
    file.write_text(file.read_text().replace('"map_50"', '"map_half"'))
    result = evaluate.load(str(folder)).compute(predictions=[], references=[])
    assert "map_half" in result
    assert "map_50" not in result
    assert "map_50" in evaluate.load(path("coco_map")).compute(predictions=[], references=[])
    assert len(list(evaluate_caches["HF_MODULES_CACHE"].rglob("coco_map.py"))) >= 2


@pytest.mark.slow
def test_loads_in_clean_process_without_network(run_python):
    """Importing the package imports neither evaluate nor the metrics."""
    printed = run_python(
        """
        import json, socket, sys
        import mobilevit_hf
        assert not {"evaluate", "faster_coco_eval", "mobilevit_hf.metrics"} & set(sys.modules)
        socket.socket.connect = None  # any connection raises

        import evaluate
        from mobilevit_hf.metrics import path
        box = {"boxes": [[0, 0, 5, 5]], "labels": [1]}
        results = [
            evaluate.load(path("top_k_accuracy")).compute(predictions=[[0.1, 0.9]], references=[1])["accuracy"],
            evaluate.load(path("mean_iou")).compute(predictions=[[[1]]], references=[[[1]]])["mean_iou"],
            evaluate.load(path("coco_map")).compute(predictions=[box | {"scores": [1]}], references=[box])["map"],
        ]
        print(json.dumps(results))
        """
    )
    assert json.loads(printed) == pytest.approx([1, 1, 1])
