"""What transformers.js needs next to ONNX files.

A classifier runs with the configurations of its model; a further file, on request, does all preprocessing, as
transformers.js resizes differently. transformers.js has neither the model type nor the image
processor of the detector, and no segmentation model of the type "mobilevit": their files of the interface
"transformers.js" have the inputs and outputs of another model, and the folder `onnx` has configurations of its own. A
detector is a YOLOS model, after non-maximum suppression, and a segmentation model a SegFormer.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..io import write_atomically
from ..records import EXPORT_FILE, read_export_records
from ..tasks import TASKS, TaskName
from .formats import FORMATS
from .interfaces import Interface

INTERFACE: Interface = "transformers.js"
# Name of the model whose inputs and outputs a file has.
MODELS: dict[TaskName, str] = {
    "image-classification": "MobileViT",
    "object-detection": "Yolos",
    "image-segmentation": "Segformer",
}
# By precision of a file, in the order of preference. Without a setting, transformers.js requests q8 in browsers.
DTYPES = {"float32": "fp32", "float16": "fp16", "int8": "q8"}
# Larger images are scaled down before the model scales them to its own size: as float32, one of 12 megapixels takes
# 144 MB several times, too much for a phone. Its boxes differ by up to 0.7% of its size, and its scores by 0.02.
MAX_SIDE = 2048


def default_dtype(folder: Path, task: TaskName, interface: Interface) -> str | None:
    """Return the precision in which transformers.js loads a model by default, None without a file.

    Args:
        folder: Model directory.
        interface: Interface of its file: "tensors" for a classifier, else "transformers.js".
    """
    format = FORMATS["onnx"]
    others = {record.file for record in read_export_records(folder / EXPORT_FILE) if record.interface != interface}
    paths = {dtype: format.path(task, interface, *_precision(precision)) for precision, dtype in DTYPES.items()}
    return next((dtype for dtype, path in paths.items() if (folder / path).is_file() and path not in others), None)


def _precision(name: str) -> tuple[str, str | None]:
    """Return dtype and quantization of a precision of `DTYPES`."""
    return ("float32", name) if name == "int8" else (name, None)


def browser_configs(folder: Path, task: TaskName, labels: Sequence[str], processor: Any) -> dict[str, str]:
    """Return the configurations for a file of the interface "transformers.js" by path in the model directory.

    Args:
        folder: Model directory. Without such a file, there are no configurations.
        labels: Class names by index.
        processor: Image processor.
    """
    name = MODELS.get(task)
    if name is None or (dtype := default_dtype(folder, task, INTERFACE)) is None:
        return {}
    model = {
        "architectures": [name + TASKS[task].head],
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        "model_type": name.lower(),
        "transformers.js_config": {"dtype": dtype},
    }
    preprocessing = {
        "do_convert_rgb": True,
        "do_normalize": False,
        "do_pad": False,
        "do_rescale": True,
        "do_resize": False,
        "do_thumbnail": True,
        "image_processor_type": f"{name}ImageProcessor",
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": MAX_SIDE, "width": MAX_SIDE},
    }
    # A segmentation model's file has no crop, which is left to transformers.js.
    if task == "image-segmentation" and getattr(processor, "do_center_crop", False):
        preprocessing |= {
            "crop_size": dict(processor.crop_size),
            "do_center_crop": True,
            "do_resize": True,
            "do_thumbnail": False,
            "resample": int(processor.resample),
            "size": dict(processor.size),
        }
    configs = {"onnx/config.json": model, "onnx/preprocessor_config.json": preprocessing}
    return {name: json.dumps(values, indent=2, ensure_ascii=False) + "\n" for name, values in configs.items()}


def write_browser_configs(folder: Path, task: TaskName, labels: Sequence[str], processor: Any) -> None:
    """Write the configurations of `browser_configs` into a model directory."""
    for name, text in browser_configs(folder, task, labels, processor).items():
        write_atomically(folder / name, lambda file, text=text: file.write(text.encode()))
