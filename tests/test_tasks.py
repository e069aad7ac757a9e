import pytest
from transformers.utils import ModelOutput

from mobilevit_hf.tasks import (
    EXPORTABLE_TASKS,
    METRICS,
    TASK_NAMES,
    TASKS,
    TRAINABLE_TASKS,
    find_task,
    task_of_architecture,
)


def test_table_has_every_task_name():
    assert tuple(TASKS) == TASK_NAMES
    assert set(TRAINABLE_TASKS) <= set(EXPORTABLE_TASKS) < set(TASK_NAMES)


@pytest.mark.parametrize("name", TASK_NAMES)
def test_classes_and_outputs_of_a_task_exist(name):
    task = TASKS[name]
    assert task.name == name
    assert task.model_class.__name__ == task.architecture
    assert issubclass(task.output_class, ModelOutput)
    assert set(task.outputs) <= set(task.output_class.__dataclass_fields__)


@pytest.mark.parametrize("name", TASK_NAMES)
def test_metrics_of_a_task_have_titles(name):
    assert set(TASKS[name].metrics) <= set(METRICS)
    assert bool(TASKS[name].metrics) is bool(TASKS[name].labels)


def test_trainable_tasks_have_a_headline_metric():
    assert {name: TASKS[name].headline_metric for name in TRAINABLE_TASKS} == {
        "image-classification": "accuracy",
        "object-detection": "map",
        "image-segmentation": "mean_iou",
    }


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("MobileViTForImageClassification", "image-classification"),
        ("MobileViTSSDLiteForObjectDetection", "object-detection"),
        ("YolosForObjectDetection", "object-detection"),
        ("MobileViTForSemanticSegmentation", "image-segmentation"),
        ("MobileViTModel", "image-feature-extraction"),
        ("MobileViTBackbone", None),
        ("", None),
        (None, None),
    ],
)
def test_task_of_architecture(architecture, name):
    task = task_of_architecture(architecture)
    assert (task and task.name) == name


class Config:
    architectures = ("MobileViTModel",)


@pytest.mark.parametrize("config", [{"architectures": ["MobileViTModel", "Other"]}, Config()])
def test_find_task_reads_dicts_and_configurations(config):
    assert find_task(config, "model") is TASKS["image-feature-extraction"]


@pytest.mark.parametrize(
    ("config", "allowed", "message"),
    [
        (Config(), TRAINABLE_TASKS, "got MobileViTModel, expected an image classifier or an object detector"),
        ({"architectures": ["BertForMaskedLM"]}, ["image-segmentation"], "expected a semantic segmentation model"),
        ({"architectures": None}, TASK_NAMES, "got a model without architectures"),
        ({}, TASK_NAMES, "got a model without architectures"),
    ],
)
def test_find_task_rejects_other_tasks(config, allowed, message):
    with pytest.raises(ValueError, match=f"^dir: .*{message}"):
        find_task(config, "dir", allowed)
