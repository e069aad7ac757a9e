"""The table of tasks: pipeline name, model, image processor, outputs, metrics and label format of each."""

import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

TaskName = Literal["image-classification", "object-detection", "image-segmentation", "image-feature-extraction"]
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)


@dataclass(frozen=True)
class Task:
    """A row of the table."""

    name: TaskName  # task of `transformers.pipeline`
    title: str  # name of a model in messages
    head: str  # suffix of the class names of transformers models for the task
    model: str  # MobileViT class, as `module:name`
    output: str  # class of its output, as `module:name`
    outputs: tuple[str, ...]  # tensors of the output that an exported model returns, in order
    labels: Literal["class", "boxes", "mask"] | None = None  # label format of a sample
    metrics: tuple[str, ...] = ()  # reported, and possible choices for selecting the best weights; headline first

    @property
    def architecture(self) -> str:
        """Name of the MobileViT class, as in `config.architectures`."""
        return self.model.partition(":")[2]

    @property
    def headline_metric(self) -> str:
        """Metric that is quoted first and chooses the best weights by default."""
        return self.metrics[0]

    @property
    def model_class(self) -> type[Any]:
        """MobileViT class for the task."""
        return pkgutil.resolve_name(self.model)

    @property
    def output_class(self) -> type[Any]:
        """Class of the model's output."""
        return pkgutil.resolve_name(self.output)


@dataclass(frozen=True)
class Metric:
    """Title of a metric in tables, and its type in the Hub's model index."""

    title: str
    hub_type: str


TASKS: dict[TaskName, Task] = {
    task.name: task
    for task in (
        Task(
            name="image-classification",
            title="image classifier",
            head="ForImageClassification",
            model="mobilevit_hf.modeling.modeling_mobilevit:MobileViTForImageClassification",
            output="transformers.modeling_outputs:ImageClassifierOutput",
            outputs=("logits",),
            labels="class",
            metrics=("accuracy", "macro_f1", "top_5_accuracy"),
        ),
        Task(
            name="object-detection",
            title="object detector",
            head="ForObjectDetection",
            model="mobilevit_hf.modeling.modeling_mobilevit_ssdlite:MobileViTSSDLiteForObjectDetection",
            output="mobilevit_hf.modeling.modeling_mobilevit_ssdlite:MobileViTSSDLiteObjectDetectionOutput",
            outputs=("logits", "pred_boxes"),
            labels="boxes",
            metrics=("map", "map_50", "map_75"),
        ),
        Task(
            name="image-segmentation",
            title="semantic segmentation model",
            head="ForSemanticSegmentation",
            model="mobilevit_hf.modeling.modeling_mobilevit:MobileViTForSemanticSegmentation",
            output="transformers.modeling_outputs:SemanticSegmenterOutput",
            outputs=("logits",),
            labels="mask",
            metrics=("mean_iou", "pixel_accuracy", "mean_dice", "boundary_iou"),
        ),
        Task(
            name="image-feature-extraction",
            title="backbone",
            head="Model",
            model="mobilevit_hf.modeling.modeling_mobilevit:MobileViTModel",
            output="transformers.modeling_outputs:BaseModelOutputWithPoolingAndNoAttention",
            outputs=("last_hidden_state", "pooler_output"),
        ),
    )
}
# Below, top-5 accuracy says little: of five classes it is always 1.
MIN_TOP_5_CLASSES = 10

EXPORTABLE_TASKS: tuple[TaskName, ...] = ("image-classification", "object-detection", "image-segmentation")
TRAINABLE_TASKS: tuple[TaskName, ...] = ("image-classification", "object-detection", "image-segmentation")

# In the order of the rows in tables.
METRICS: dict[str, Metric] = {
    "accuracy": Metric("Accuracy", "accuracy"),
    "top_5_accuracy": Metric("Top-5 accuracy", "top_5_accuracy"),
    "macro_f1": Metric("Macro F1", "f1"),
    "map": Metric("mAP (IoU 0.50 to 0.95)", "map"),
    "map_50": Metric("mAP at IoU 0.50", "map_50"),
    "map_75": Metric("mAP at IoU 0.75", "map_75"),
    "map_small": Metric("mAP, small objects (area below 32² pixels)", "map_small"),
    "map_medium": Metric("mAP, medium objects", "map_medium"),
    "map_large": Metric("mAP, large objects (area above 96² pixels)", "map_large"),
    "mar_100": Metric("Recall with 100 boxes", "mar_100"),
    "mean_iou": Metric("Mean IoU", "mean_iou"),
    "pixel_accuracy": Metric("Pixel accuracy", "pixel_accuracy"),
    "mean_dice": Metric("Mean Dice", "dice"),
    "boundary_iou": Metric("Boundary IoU", "boundary_iou"),
}


def task_of_architecture(architecture: str | None) -> Task | None:
    """Return the task of a transformers class by the suffix of its name, None if it has no known suffix."""
    return next((task for task in TASKS.values() if (architecture or "").endswith(task.head)), None)


def find_task(config: Mapping[str, Any] | Any, source: str, allowed: Iterable[TaskName] = TASK_NAMES) -> Task:
    """Return the task of a checkpoint from its `PreTrainedConfig` or the content of its `config.json`.

    Raises:
        ValueError: If the task is not allowed. `source` names the checkpoint in the message.
    """
    names = config.get("architectures") if isinstance(config, Mapping) else getattr(config, "architectures", None)
    architecture = names[0] if isinstance(names, list | tuple) and names and isinstance(names[0], str) else None
    task, allowed = task_of_architecture(architecture), tuple(allowed)
    if task is None or task.name not in allowed:
        titles = [f"{'an' if TASKS[name].title[0] in 'aeio' else 'a'} {TASKS[name].title}" for name in allowed]
        raise ValueError(
            f"{source}: got {architecture or 'a model without architectures'}, expected {' or '.join(titles)}. "
            "Pass another model."
        )
    return task
