"""Model folders with fixed training, evaluation and export records, and ways to change them."""

import json

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file

MIT_CARD = "---\nlicense: mit\n---\n# Mine\n"
CLASSES = {
    "image-classification": ("dress", "hat", "t-shirt"),
    "object-detection": ("RBC", "WBC", "Platelets"),
    "image-segmentation": ("road", "car", "pole"),
}
ARCHITECTURES = {
    "image-classification": "MobileViTForImageClassification",
    "object-detection": "MobileViTSSDLiteForObjectDetection",
    "image-segmentation": "MobileViTForSemanticSegmentation",
}
HARDWARE = {
    "device": "cpu",
    "cpu": "Some CPU 3000",
    "cores": 2,
    "threads": 1,
    "processes": 1,
    "system": "Linux x86_64",
}
APPLE = {
    "id": "other",
    "name": "apple-sample-code-license",
    "link": "https://github.com/apple/ml-cvnets/blob/main/LICENSE",
}
ARGUMENTS = {
    "model": "apple/mobilevit-xx-small",
    "per_device_train_batch_size": 32,
    "learning_rate": 0.001,
    "weight_decay": 0.01,
    "ema_decay": 0.998,
    "multi_scale": "progressive",
    "horizontal_flip": 0.5,
    "freeze_backbone": False,
    "rand_augment": None,
    "per_device_eval_batch_size": 16,
    "image_size": 160,
    "seed": 0,
}


def write_model(folder, task="image-classification", **config):
    """Write the files of `save_pretrained` that a card depends on: 150,000 parameters in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {
        "architectures": [ARCHITECTURES[task]],
        "id2label": {str(index): name for index, name in enumerate(CLASSES[task])},
        **({"recommended_threshold": 0.412} if task == "object-detection" else {}),
    }
    (folder / "config.json").write_text(json.dumps(fields | config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"crop_size": {"height": 160, "width": 160}}))
    weights = {
        "layer.weight": np.zeros((300, 499), np.float32),
        "layer.bias": np.zeros(300, np.float32),
        "norm.running_mean": np.zeros(300, np.float32),
        "norm.num_batches_tracked": np.array(7),
    }
    save_file(weights, folder / "model.safetensors")
    return folder


def edit_config(folder, **values):
    """Set values in `config.json`; None removes one."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def set_nan_weight(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.bias"][1] = np.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def write_run(folder, task="image-classification", **changes):
    """Write a model with the records and figures of a training run, with changes to `run.json`."""
    write_model(folder, task)
    dataset, counts, results = RUNS[task]
    run = {
        "task": task,
        "date": "2026-01-02",
        "command": "mobilevit train DATA --model apple/mobilevit-xx-small --max-minutes 8.5",
        "initial_checkpoint": {
            "kind": "hub",
            "name": "apple/mobilevit-xx-small",
            "base_model": "apple/mobilevit-xx-small",
            "license": APPLE,
        },
        "data": {
            "format": "imagefolder",
            "classes": list(CLASSES[task]),
            "name": dataset,
            "widths": {"min": 180, "median": 240, "max": 400},
            "heights": {"min": 200, "median": 320, "max": 410},
            "images": {"train": 3068, "validation": 341},
            "counts": counts,
            "streamed": False,
            "skipped": {"unreadable image": 2, "same image in two splits": 1},
            "validation_cut_off": False,
        },
        "arguments": ARGUMENTS,
        "steps": 1152,
        "seconds": 3725.4,
        "images_per_second": 71.3,
        "hardware": HARDWARE,
        "versions": {"python": "3.11.9", "torch": "2.8.0", "transformers": "5.17.0"},
    }
    if task == "object-detection":
        run["data"] |= {
            "format": "voc",
            "box_sides": {"min": 0.031, "median": 0.17, "max": 0.62},
            "boxes_per_image": {"min": 1, "median": 12, "max": 29},
        }
    (folder / "run.json").write_text(json.dumps(run | changes))
    (folder / "results.json").write_text(json.dumps(results))
    for file in ("curves.png", *PLOTS[task]):
        Image.new("RGB", (8, 8)).save(folder / file)
    return folder


PLOTS = {
    "image-classification": ("confusion_matrix.png", "reliability.png", "samples.png", "mistakes.png"),
    "object-detection": (
        *("average_precision.png", "confusion_matrix.png", "precision_recall.png", "thresholds.png"),
        *("samples.png", "mistakes.png"),
    ),
    "image-segmentation": (
        *("class_iou.png", "confusion_matrix_normalized.png", "best_images.png", "worst_images.png"),
    ),
}


def class_metrics(average_precision, support, count_error, count_bias):
    """Return the metrics of a detector's class."""
    metrics = {"map": average_precision, "map_50": 0.9, "map_75": 0.4, "map_small": -1.0, "mar_100": 0.6}
    metrics |= {"support": support, "precision": 0.8, "recall": 0.7, "f1": 0.75}
    return metrics | {"count_error": count_error, "count_bias": count_bias}


RUNS = {
    "image-classification": (
        "clothing",
        {
            "train": {"dress": 2000, "hat": 12, "t-shirt": 1056},
            "validation": {"dress": 200, "hat": 2, "t-shirt": 139},
        },
        {
            "metric": "accuracy",
            "best": 0.92375,
            "steps": 1152,
            "seconds": 3725.4,
            "split": "validation",
            "num_images": 341,
            "metrics": {
                "accuracy": 0.92375,
                "macro_f1": 0.8125,
                "ece": 0.0312,
                "per_class": {
                    "dress": {"precision": 0.95, "recall": 0.97, "f1": 0.96, "support": 200},
                    "hat": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2},
                    "t-shirt": {"precision": 0.9, "recall": 0.86, "f1": 0.88, "support": 139},
                },
            },
            "intervals": {"accuracy": [0.8944, 0.9501], "macro_f1": [0.61, 0.95]},
            "losses": {"loss": 0.2513},
            "num_evaluations": 12,
            "images_per_second": 61.2,
        },
    ),
    "object-detection": (
        "cells",
        {
            "train": {"RBC": 2210, "WBC": 205, "Platelets": 190},
            "validation": {"RBC": 819, "WBC": 87, "Platelets": 76},
        },
        {
            "metric": "map",
            "best": 0.4871,
            "steps": 1152,
            "seconds": 3725.4,
            "split": "validation",
            "num_images": 341,
            "metrics": {
                "map": 0.4871,
                "map_50": 0.8125,
                "map_75": 0.5,
                "map_small": -1.0,
                "mar_100": 0.6,
                "per_class": {"RBC": 0.5, "WBC": 0.75, "Platelets": 0.2113},
                "per_class_metrics": {
                    "RBC": class_metrics(0.5, 819, 1.92, 0.31),
                    "WBC": class_metrics(0.75, 87, 0.05, -0.01),
                    "Platelets": class_metrics(0.2113, 76, 0.4, -0.2),
                },
            },
            "intervals": {"map": [0.46, 0.51], "map_50": [0.79, 0.84]},
            "losses": {"loss": 2.5134, "loss_ce": 1.5, "loss_bbox": 1.0134},
            "num_evaluations": 12,
            "threshold": 0.4123,
            "best_threshold": {"value": 0.4123, "f1": 0.81, "precision": 0.8, "recall": 0.82},
            "images_per_second": 31.0,
        },
    ),
    "image-segmentation": (
        "streets",
        {
            "train": {"road": 900_000, "car": 95_500, "pole": 4_500},
            "validation": {"road": 90_000, "car": 9_600, "pole": 400},
        },
        {
            "metric": "mean_iou",
            "best": 0.6125,
            "steps": 1152,
            "seconds": 3725.4,
            "split": "validation",
            "num_images": 341,
            "metrics": {
                "mean_iou": 0.6125,
                "pixel_accuracy": 0.9432,
                "mean_dice": 0.7219,
                "boundary_iou": 0.4875,
                "per_class": {
                    "road": {"iou": 0.95, "dice": 0.9744, "accuracy": 0.98, "pixels": 90_000},
                    "car": {"iou": 0.7, "dice": 0.8235, "accuracy": 0.81, "pixels": 9_600},
                    "pole": {"iou": 0.1875, "dice": 0.3158, "accuracy": 0.25, "pixels": 400},
                },
            },
            "intervals": {"mean_iou": [0.58, 0.64], "pixel_accuracy": [0.93, 0.95]},
            "losses": {"loss": 0.2134},
            "num_evaluations": 12,
            "images_per_second": 21.0,
        },
    ),
}
EXPORTS = [
    {
        "backend": "openvino",
        "dtype": "float32",
        "quantization": None,
        "file": "openvino/openvino_model.xml",
        "bytes": 640_000,
        "max_error": 2.1e-5,
        "agreement": 1.0,
        "latency_ms": {"1": 3.41, "8": 25.5},
        "machine": {"cpu": "Some CPU 3000", "cores": 2},
    },
    {
        "backend": "onnx",
        "dtype": "float32",
        "quantization": "int8",
        "file": "onnx/model.onnx",
        "bytes": 200_000,
        "agreement": 0.985,
        "latency_ms": {"1": 4.5},
        "machine": {"cpu": "Some CPU 3000", "cores": 2},
    },
]
