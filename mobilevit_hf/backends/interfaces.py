"""The interfaces of exported files: what they take and return. Importing this module does not import torch."""

from typing import Literal, get_args

from ..tasks import TASKS, TaskName

# "tensors": `pixel_values` (B, 3, H, W) float32, the output of the image processor → outputs of the torch model.
# "image": `image` (1, H, W, 3) uint8 RGB of the image processor's size → predictions. A classifier returns `scores`
#     (1, K), the softmax. A detector returns N rows in descending order of the score, zeros after the last detection:
#     `boxes` (1, N, 4) (x1, y1, x2, y2) as fractions of the image, `scores` (1, N), `labels` (1, N) class indices.
#     A segmentation model returns `labels` (1, H, W), the class index of each pixel.
# "transformers.js": `pixel_values` (1, 3, H, W) float32 RGB in 0..1 → outputs in the form that its pipeline expects,
#     see `image_models.TransformersJsDetector` and `TransformersJsSegmenter`.
Interface = Literal["tensors", "image", "transformers.js"]
INTERFACES: tuple[Interface, ...] = get_args(Interface)

# What a file takes and returns, for users.
DESCRIPTIONS: dict[Interface, str] = {
    "tensors": "takes the output of the image processor",
    "image": "takes the image as uint8 RGB, returns labels or boxes",
    "transformers.js": "runs in the pipeline of transformers.js for its task, in Node and browsers",
}
_PREDICTIONS: dict[TaskName, tuple[str, ...]] = {
    "image-classification": ("scores",),
    "object-detection": ("boxes", "scores", "labels"),
    "image-segmentation": ("labels",),
}


def input_name(interface: Interface) -> str:
    """Return the name of the input."""
    return "image" if interface == "image" else "pixel_values"


def output_names(task: TaskName, interface: Interface) -> tuple[str, ...]:
    """Return the names of the outputs, in order."""
    return _PREDICTIONS[task] if interface == "image" else TASKS[task].outputs
