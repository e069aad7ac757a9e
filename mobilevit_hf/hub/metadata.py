"""What is known of a model: what its training recorded, what its files say, and what its maker adds."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..backends.cache import read_record
from .licenses import RUN_FILE, License, find_license, public_name, read_license

RESULTS_FILE = "results.json"
# What a training or `mobilevit evaluate --json` leaves beside a model.
FIGURES = ("curves.png", "confusion_matrix.png", "average_precision.png")
IMAGES = ("samples.png", "mistakes.png")
EVALUATIONS = "evaluation*.json"
EXPORTS = ("export.json", "*/export.json")
# What may be published beside weights, configurations, card and exports: no path of this machine is in it. The recipe,
# checkpoints and the results of `mobilevit evaluate` have some.
PUBLISHED_FILES = (RUN_FILE, RESULTS_FILE, *FIGURES, *IMAGES)

# Tasks by the ending of an architecture's name.
TASKS = {
    "ForImageClassification": "image-classification",
    "ForObjectDetection": "object-detection",
    "ForSemanticSegmentation": "image-segmentation",
    "Model": "image-feature-extraction",
}
# What is in the weights beside parameters.
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
# As safetensors calls them.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Given:
    """What the maker of a model says about it; each may be left out.

    Attributes:
        license: As the Hub names it, such as "apache-2.0".
        license_name, license_link: Of a license "other".
        base_model: The Hub id of the model it was made from.
        datasets: Hub ids of what it was trained on.
        language: Of the classes' names, such as "en".
        tags: Beside those that follow from the model.
        description: What it is for, in Markdown.
        intended_use: What it should be used for, and what not, in Markdown.
        images: Whether images of the data may be shown.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    base_model: str | None = None
    datasets: tuple[str, ...] = ()
    language: str | None = None
    tags: tuple[str, ...] = ()
    description: str | None = None
    intended_use: str | None = None
    images: bool = True


@dataclass(frozen=True)
class Evaluation:
    """What was measured on some images.

    Attributes:
        data: The data's name, None if it has none that others may see.
        split: Of it, such as "validation".
        num_images: How many there were.
        metrics: As `EvaluationResult` has them, like the next two.
        intervals: By metric.
        threshold: The fields of `BestThreshold`; None for a classifier.
        images_per_second: From the file to the answer, where the training ran; None if measured elsewhere.
    """

    data: str | None
    split: str
    num_images: int
    metrics: Mapping[str, Any]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    threshold: Mapping[str, float] | None = None
    images_per_second: float | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What there is to say about a model; what nobody recorded is None or empty.

    Attributes:
        given: By its maker.
        task: As transformers' `pipeline` calls it.
        classes: Their names, in the model's order.
        image_size: Side of the images that the model sees, in pixels.
        parameters: How many it has.
        num_bytes: Of its weights' files.
        dtype: Of its weights, such as "float32".
        license: Given, or that of what it started from.
        base_model: The Hub id of the nearest ancestor on the Hub.
        datasets: Hub ids.
        run: What its training recorded, as `training.recording` writes it.
        evaluations: That of the training first.
        threshold: The score above which a detector's answers are best taken for objects.
        exports: What `mobilevit export` recorded of each file.
        figures: Names of the images and plots to show.
    """

    given: Given
    task: str
    classes: tuple[str, ...]
    image_size: int | None
    parameters: int
    num_bytes: int
    dtype: str
    license: License
    base_model: str | None = None
    datasets: tuple[str, ...] = ()
    run: Mapping[str, Any] = field(default_factory=dict)
    evaluations: tuple[Evaluation, ...] = ()
    threshold: float | None = None
    exports: tuple[Mapping[str, Any], ...] = ()
    figures: tuple[str, ...] = ()


def collect_facts(folder: Path, given: Given) -> ModelFacts:
    """What is known of the model in a folder.

    Raises:
        ValueError: If it holds no model, a file in it can't be read, or the license is not known and was not given.
    """
    config = read_json(folder / "config.json")
    if not config:
        raise ValueError(f"{folder} holds no config.json. Give a folder that a training or save_pretrained wrote.")
    run = read_json(folder / RUN_FILE)
    start = run.get("start", {})
    if given.license:
        stated = License(given.license, given.license_name, given.license_link)
    else:
        stated = None if given.base_model else read_license(folder)
    parameters, num_bytes, dtype = read_weights(folder)
    names = config.get("id2label") or {}
    shown = (*FIGURES, *(IMAGES if given.images else ()))
    return ModelFacts(
        given=given,
        task=find_task(config),
        classes=tuple(name for _, name in sorted(names.items(), key=lambda item: int(item[0]))),
        image_size=_image_size(read_json(folder / "preprocessor_config.json")) or config.get("image_size"),
        parameters=parameters,
        num_bytes=num_bytes,
        dtype=dtype,
        license=find_license(stated, given.base_model, start),
        base_model=given.base_model or start.get("base_model"),
        datasets=given.datasets or tuple(filter(None, [run.get("data", {}).get("dataset")])),
        run=run,
        evaluations=tuple(_read_evaluations(folder, run)),
        threshold=config.get("recommended_threshold"),
        exports=tuple(_read_exports(folder)),
        figures=tuple(name for name in shown if (folder / name).is_file()),
    )


def find_task(config: Mapping[str, Any]) -> str:
    """What a model does, by its configuration.

    Raises:
        ValueError: If that is nothing a MobileViT does.
    """
    architecture = next(iter(config.get("architectures") or []), "")
    for ending, task in TASKS.items():
        if architecture.startswith("MobileViT") and architecture.endswith(ending):
            return task
    raise ValueError(
        f"architectures: got {architecture or 'none'}, expected a MobileViT of transformers or this package."
    )


def read_json(path: Path) -> dict[str, Any]:
    """What is in a JSON file; nothing if it isn't there.

    Raises:
        ValueError: If it can't be read, or holds no names and values.
    """
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read ({error}). Remove it, or mend it.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got {type(values).__name__}, expected names and values. Remove it, or mend it.")
    return values


def read_weights(folder: Path) -> tuple[int, int, str]:
    """How many parameters there are, in how many bytes of files, and of which type most of them are."""
    counts: dict[str, int] = {}
    whole = folder / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("model-*-of-*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no model.safetensors. Save the model with save_pretrained.")
    for path in files:
        try:
            with safe_open(path, "np") as weights:
                for name in weights.keys():  # noqa: SIM118 (it is no dict)
                    if not name.endswith(BUFFERS):
                        tensor = weights.get_slice(name)
                        size = 1
                        for length in tensor.get_shape():
                            size *= length
                        dtype = tensor.get_dtype()
                        counts[dtype] = counts.get(dtype, 0) + size
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} can't be read ({error}). Save the model again.") from error
    dtype = max(counts, key=counts.__getitem__)
    return sum(counts.values()), sum(path.stat().st_size for path in files), DTYPES.get(dtype, dtype.lower())


def _image_size(preprocessor: Mapping[str, Any]) -> int | None:
    for name in ("crop_size", "size"):
        size = preprocessor.get(name)
        if isinstance(size, dict) and "height" in size:
            return size["height"]
    return None


def _read_evaluations(folder: Path, run: Mapping[str, Any]) -> Iterator[Evaluation]:
    results = read_json(folder / RESULTS_FILE)
    if results.get("metrics"):
        speed = results.get("images_per_second")
        yield _evaluation(folder / RESULTS_FILE, results, run.get("data", {}).get("name"), images_per_second=speed)
    for path in sorted(folder.glob(EVALUATIONS)):
        measured = read_json(path)
        name = re.sub(r"(?<=..):.*", "", measured.get("data") or "")  # without a configuration's name
        yield _evaluation(path, measured, public_name(Path(name)) if name else None)


def _evaluation(path: Path, values: Mapping[str, Any], data: str | None, **more: Any) -> Evaluation:
    names = ("split", "num_images", "metrics")
    if missing := [name for name in names if name not in values]:
        raise ValueError(
            f"{path} is no result of a training or of mobilevit evaluate --json: it has no {', '.join(missing)}. "
            "Remove it, or measure again."
        )
    return Evaluation(
        data=data,
        **{name: values[name] for name in names},
        intervals=values.get("intervals", {}),
        threshold=values.get("best_threshold"),
        **more,
    )


def _read_exports(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Each file once, by its name alone."""
    seen = set()
    for path in (path for pattern in EXPORTS for path in sorted(folder.glob(pattern))):
        for export in read_record(path):
            name = Path(export.get("file") or "").name
            key = (export.get("backend"), export.get("dtype"), export.get("quantization"), name)
            if key not in seen:
                seen.add(key)
                yield {**export, "file": name}
