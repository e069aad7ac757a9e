"""Static page that runs a model in the visitor's browser: a folder for any server of static files."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from transformers import PreTrainedModel

from ..backends.formats import check_backend
from ..backends.loader import export_image_file
from ..backends.pytorch import load_model
from ..hub.card import count, find_headline, find_threshold_source, percent, quoted_metric
from ..hub.contents import Contents
from ..hub.licenses import License
from ..hub.metadata import CardOptions, ModelMetadata, collect_metadata
from ..hub.space import INDEX, PAGE_MARKER
from ..io import atomic_folder
from ..model_sources import builtin_models, load_image_processor, read_task, recommended_threshold, resolve_model
from ..tasks import EXPORTABLE_TASKS, METRICS, Task
from ..visualization.colors import class_colors, text_color
from ..visualization.masks import is_background
from .onnxruntime_web import runtime_files

MODEL, SETTINGS = "model.onnx", "model.json"
MANIFEST, SERVICE_WORKER = "manifest.webmanifest", "service-worker.js"
STATIC = Path(__file__).with_name("static")
SCRIPTS = ("page.js", "worker.js", "resize.js", "boxes.js", "masks.js", "page.css", "icon.svg")  # copied as they are
# No other origin, and no code but that of the page's own files; WebAssembly needs 'wasm-unsafe-eval'.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'wasm-unsafe-eval'",
        *(f"{kind}-src 'self'" for kind in ("style", "img", "connect", "worker", "manifest")),
        "base-uri 'none'",
        "form-action 'none'",
    )
)
# What a model does with {} classes and with images of anything else, by task's labels.
SUMMARIES: dict[str | None, tuple[str, str]] = {
    "class": ("Classifies images into {}.", "An image of anything else gets one of these classes too."),
    "boxes": ("Detects {} of objects in images.", "Other objects are not detected."),
    "mask": ("Segments images into {}.", "Pixels of anything else get one of these classes too."),
}
# Style and name of the list of predictions, by task's labels.
LISTS: dict[str | None, tuple[str, str]] = {
    "class": ("bars", "Most probable classes"),
    "boxes": ("counts", "Number of objects by class"),
    "mask": ("switches", "Classes on the image, with their fraction of the pixels"),
}
# Filters of resize.js.
FILTERS = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


@dataclass(frozen=True)
class Preprocessing:
    """Resize and center crop of an image processor, for resize.js.

    Attributes:
        resize: `shortest_edge`, or `height` and `width` in pixels.
        crop: `height` and `width` in pixels; None without a crop.
        resample: Key of the filters in resize.js.
    """

    resize: dict[str, int]
    crop: dict[str, int] | None
    resample: str


@dataclass(frozen=True)
class Description:
    """What the page tells about the model, in sentences.

    Attributes:
        name: Title of the page.
        summary: What the model does.
        quality: Headline metric with its interval and number of images; empty if none is recorded.
        limits: What happens with images of anything else.
        facts: Number of parameters, image size and number of training images.
        link: URL of the model card; None if the model is not on the Hub.
    """

    name: str
    summary: str
    quality: str
    limits: str
    facts: list[str]
    link: str | None


@dataclass(frozen=True)
class StaticPage:
    """A page without its texts, which depend on where it is published.

    Attributes:
        model: Exported model.
        runtime: Files of onnxruntime-web.
        settings: Contents of model.json.
        metadata: Metadata of the model.
        name: Name of the model.
    """

    model: Path
    runtime: list[Path]
    settings: dict[str, Any]
    metadata: ModelMetadata
    name: str

    def render(self, repo_id: str | None = None) -> dict[str, Path | bytes]:
        """Return the files of the page: local files or generated contents, by name.

        Args:
            repo_id: Hub id of the model, to which the page links.
        """
        name = repo_id.rpartition("/")[2] if repo_id else self.name
        description = describe(self.metadata, name, repo_id)
        labels = self.metadata.task.labels
        style, label = LISTS[labels]
        texts = {"is_detector": labels == "boxes", "list_style": style, "list_label": label}
        files: dict[str, Path | bytes] = {
            INDEX: _render(INDEX, **asdict(description), classes=self.metadata.classes, **texts),
            SETTINGS: json.dumps(self.settings).encode(),
            MANIFEST: json.dumps(_make_manifest(description)).encode(),
            MODEL: self.model,
            **{path.name: path for path in (*self.runtime, *(STATIC / name for name in SCRIPTS))},
        }
        return files | {SERVICE_WORKER: _render_service_worker(files)}


def build_static_page(model: str, folder: Path) -> dict[str, int]:
    """Write the page of a model into a folder: whole, or not at all after an error.

    The page needs no server but one of static files, and no network after the first visit.

    Args:
        model: Model directory, built-in name or Hub id.
        folder: Missing or empty folder, or one with an earlier page, whose files are overwritten.

    Returns:
        Sizes of the files in bytes, by name.

    Raises:
        ValueError: If the folder has other contents; or as `prepare_static_page`.
    """
    check_folder(folder)
    is_local = Path(model).is_dir() or model in builtin_models()
    contents = Contents(prepare_static_page(model).render(None if is_local else model), ())
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        for name in contents.files:
            (temporary / name).write_bytes(contents.read(name))
    return contents.sizes


def prepare_static_page(model: str) -> StaticPage:
    """Export a model for its page, and download the runtime on the first use.

    Args:
        model: Model directory, built-in name or Hub id.

    Raises:
        ValueError: If the model is not supported, ONNX is not installed or the runtime can't be downloaded.
    """
    source = resolve_model(model)
    task = read_task(model, source, EXPORTABLE_TASKS)
    check_backend("onnx", task.name, "float32", None, "image")
    processor = load_image_processor(source)
    preprocessing = read_preprocessing(processor, model)
    runtime = runtime_files()
    torch_model, _ = load_model(task.name, str(source))
    metadata = _collect_metadata(source, task, torch_model)
    _, exported = export_image_file(torch_model, task.name, processor, source=str(source))
    downloads = [exported, *(path for path in runtime if path.suffix == ".wasm")]
    settings = {
        "task": task.name,
        "classes": _describe_classes(metadata.classes),
        "background": [index for index, name in enumerate(metadata.classes) if is_background(name)],
        "threshold": recommended_threshold(torch_model.config) if task.labels == "boxes" else None,
        "preprocessing": asdict(preprocessing),
        "bytes": sum(path.stat().st_size for path in downloads),
    }
    name = source.resolve().name if Path(model).is_dir() else model.rpartition("/")[2]
    return StaticPage(exported, runtime, settings, metadata, name)


def _collect_metadata(source: Path, task: Task, model: PreTrainedModel) -> ModelMetadata:
    if any(source.glob("*.safetensors")):
        return collect_metadata(source, CardOptions(license="unknown"))  # the page does not show the license
    # An older repository with pickled weights, and without records.
    classes = tuple(name for _, name in sorted((model.config.id2label or {}).items()))
    return ModelMetadata(CardOptions(), task, classes, None, model.num_parameters(), 0, "float32", License("unknown"))


def check_folder(folder: Path) -> None:
    """Check that a page may be written into a folder.

    Raises:
        ValueError: If it is a file, or has other contents than an earlier page.
    """
    if folder.is_dir():
        index = folder / INDEX
        if any(folder.iterdir()) and not (
            index.is_file() and PAGE_MARKER in index.read_text(encoding="utf-8", errors="replace")
        ):
            raise ValueError(
                f"{folder}: got a folder with other files, expected a missing or empty one, or an earlier page. Pass "
                "another folder."
            )
    elif folder.exists():
        raise ValueError(f"{folder}: got a file, expected a folder. Pass another path.")


def read_preprocessing(processor: Any, model: str) -> Preprocessing:
    """Return what resize.js does of an image processor; the exported model does the rest.

    Raises:
        ValueError: If the page can't do the same.
    """
    if not processor.do_resize or processor.resample not in FILTERS:
        raise ValueError(
            f"{model}: got do_resize={processor.do_resize}, resample={processor.resample} in its image processor, "
            f"expected True and {' or '.join(f'{int(key)} ({name})' for key, name in FILTERS.items())}. Use "
            "mobilevit demo without --static."
        )
    names = ("shortest_edge", "height", "width")
    resize = {name: value for name in names if (value := getattr(processor.size, name, None))}
    crops = getattr(processor, "do_center_crop", False)
    crop = {name: getattr(processor.crop_size, name) for name in ("height", "width")} if crops else None
    return Preprocessing(resize, crop, FILTERS[processor.resample])


def describe(metadata: ModelMetadata, name: str, repo_id: str | None = None) -> Description:
    """Describe a model by its recorded metadata."""
    summary, limits = SUMMARIES[metadata.task.labels]
    summary = summary.format(count(len(metadata.classes), "class"))
    facts = [f"{metadata.parameters / 1e6:.1f} million parameters"]
    if metadata.image_size:
        facts.append(f"{metadata.image_size}x{metadata.image_size} pixels")
    if metadata.data and (images := metadata.data.images.get("train")):
        facts.append(f"trained on {count(images, 'image')}")
    link = f"{constants.ENDPOINT}/{repo_id}" if repo_id else None
    return Description(name, summary, _describe_quality(metadata), limits, facts, link)


def _describe_quality(metadata: ModelMetadata) -> str:
    """Return the headline metric as in the model card; empty if none is recorded."""
    evaluation = find_headline(metadata.evaluations)
    metric = quoted_metric(metadata.task)
    if evaluation is None or metric not in evaluation.metrics:
        return ""
    where = "of a cross-validation" if evaluation.cross_validation else f"of the {evaluation.split} split"
    images = count(evaluation.num_images, "image")
    text = f"{METRICS[metric].title}: {percent(evaluation.metrics[metric])} on {images} {where}"
    if interval := evaluation.intervals.get(metric):
        text += f" (95% confidence interval {percent(interval[0])} to {percent(interval[1])})"
    text += "."
    source = find_threshold_source(metadata)
    if source and source.threshold:
        precision, recall = (percent(source.threshold[name]) for name in ("precision", "recall"))
        text += f" At the recommended threshold of {metadata.threshold:.2f}, {precision} of the detected objects are "
        text += f"right, and {recall} of the objects are detected ({source.split} split)."
    return text


def _describe_classes(names: tuple[str, ...]) -> list[dict[str, str]]:
    colors = class_colors(names)
    return [
        {"name": name, "color": "rgb({}, {}, {})".format(*colors[name]), "text_color": text_color(colors[name])}
        for name in names
    ]


def _make_manifest(description: Description) -> dict[str, Any]:
    """Return the web app manifest, with which a phone can install the page."""
    return {
        "name": description.name,
        "description": description.summary,
        "start_url": "./",
        "display": "standalone",
        "background_color": "#ffffff",
        "theme_color": "#0b7a75",
        "icons": [{"src": "icon.svg", "sizes": "any", "type": "image/svg+xml"}],
    }


def _render_service_worker(files: dict[str, Path | bytes]) -> bytes:
    """Render the service worker, which differs if any of the files does."""
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(name.encode())
        digest.update(content if isinstance(content, bytes) else content.read_bytes())
    return _render(SERVICE_WORKER, version=digest.hexdigest()[:16], files=["./", *files])


def _render(name: str, /, **values: Any) -> bytes:
    environment = Environment(
        loader=PackageLoader(str(__package__), "static"),
        autoescape=name == INDEX,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    template = environment.get_template(f"{name}.jinja")
    return template.render(policy=POLICY, generator_tag=PAGE_MARKER, **values).encode()
