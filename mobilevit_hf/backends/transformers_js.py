"""Configurations with which transformers.js runs a detector, next to its ONNX files.

transformers.js knows neither the model type nor the image processor of the detector. A file of the interface
"transformers.js" has the inputs and outputs of a YOLOS model, after non-maximum suppression, and these configurations
say so: the folder `onnx` is a model of its own.
"""

import json
from pathlib import Path
from typing import Any

from ..io import write_atomically
from ..records import EXPORT_FILE, read_export_records
from .interfaces import Interface

INTERFACE: Interface = "transformers.js"
FOLDER = "onnx"
# By precision of a file. Without a setting, transformers.js requests q8 in browsers.
DTYPES = {"float32": "fp32", "float16": "fp16", "int8": "q8"}
# Larger images are scaled down before the model scales them to its own size, which is exact for all others. As
# float32, a photo of 12 megapixels takes 144 MB several times, too much for a phone.
MAX_SIDE = 2048


def browser_configs(folder: Path, config: Any) -> dict[str, str]:
    """Return the configurations by path in the model directory, none without a file of the interface.

    Args:
        folder: Model directory with an `export.json`.
        config: Configuration of the detector.
    """
    records = [record for record in read_export_records(folder / EXPORT_FILE) if record.interface == INTERFACE]
    precisions = {record.quantization or record.dtype for record in records if (folder / record.file).is_file()}
    if not precisions:
        return {}
    default = next(dtype for precision, dtype in DTYPES.items() if precision in precisions)
    names = {str(index): config.id2label[index] for index in range(config.num_labels)}
    model = {
        "architectures": ["YolosForObjectDetection"],
        "id2label": names,
        "label2id": {name: int(index) for index, name in names.items()},
        "model_type": "yolos",
        "transformers.js_config": {"dtype": default},
    }
    processor = {
        "do_convert_rgb": True,
        "do_normalize": False,
        "do_pad": False,
        "do_rescale": True,
        "do_resize": False,
        "do_thumbnail": True,
        "image_processor_type": "YolosImageProcessor",
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": MAX_SIDE, "width": MAX_SIDE},
    }
    return {f"{FOLDER}/config.json": _dump(model), f"{FOLDER}/preprocessor_config.json": _dump(processor)}


def write_browser_configs(folder: Path, config: Any) -> None:
    """Write the configurations of `browser_configs` into a model directory."""
    for name, text in browser_configs(folder, config).items():
        write_atomically(folder / name, lambda file, text=text: file.write(text.encode()))


def _dump(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
