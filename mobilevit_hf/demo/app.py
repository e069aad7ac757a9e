"""Gradio page: classify, segment or detect objects in one image or many files, and compare backends."""

import base64
import csv
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from gradio.image_utils import encode_image_to_base64
from gradio.routes import App
from PIL import Image
from starlette.middleware import Middleware
from transformers import Pipeline

from ..data.images import MAX_DOWNLOAD_BYTES, UnreadableImageError
from ..data.segments import make_label_map
from ..model_sources import read_task, recommended_threshold, resolve_model
from ..tasks import EXPORTABLE_TASKS
from ..visualization import class_colors, draw_detections, draw_overlay
from .inference import (
    DETECTION,
    SEGMENTATION,
    Load,
    Predictions,
    Table,
    backend_titles,
    compare_backends,
    count_labels,
    load_pipeline,
    predict_files,
    predict_upload,
)
from .middleware import HostMiddleware, SizeMiddleware
from .turns import in_turn
from .uploads import MAX_FILES, check_upload, check_uploads, count_pixels, delete_uploads

# Events of each kind at a time, whose predictions take turns, see `in_turn`.
QUEUE: dict[str, Any] = {"concurrency_limit": 8}
# Events that wait, of all visitors; more are rejected at once.
MAX_WAITING = 64
# Model, backend and threshold.
Settings = tuple[gr.Dropdown, gr.Dropdown, gr.Slider]
# Interval at which files that were uploaded without a prediction are deleted, and their minimum age, in seconds.
DELETE_UNUSED = (60, 900)
# Seconds after an answer until the image is deleted, in which the browser loads its preview.
DELETE_SECONDS = 3
EMPTY, HIDDEN, SHOWN = gr.update(value=None, visible=False), gr.update(visible=False), gr.update(visible=True)
PLACEHOLDER = '<p class="small">Predictions appear here.</p>'
STYLESHEET = Path(__file__).with_name("page.css")


def build_app(models: Sequence[str], *, fixed: bool = False, examples: Sequence[tuple[Path, str]] = ()) -> gr.Blocks:
    """Return the demo page, to be started with `launch`.

    Args:
        models: Models to choose from, as for `resolve_model`; at least one, the first is selected.
        fixed: Allow no other models, so that visitors can't open local folders, and hide local paths.
        examples: Example images, each with its model.

    Raises:
        ValueError: If a model does not exist, or is for another task.
    """
    for model in models:
        read_task(model, resolve_model(model), EXPORTABLE_TASKS)
    sources = _public_names(models) if fixed else {model: model for model in models}
    names, public_names = list(sources), {source: name for name, source in sources.items()}
    load = partial(load_fixed, sources) if fixed else load_pipeline
    value, visible = _find_threshold(load, names[0])
    backends = [(title, backend) for backend, title in backend_titles().items()]
    title = names[0] if fixed and len(names) == 1 else "MobileViT"
    gr.set_static_paths([path for path, _ in examples])  # else copied to the folder of uploads, which are deleted
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=DELETE_UNUSED) as app:
        gr.Markdown(f"# {title}")
        with gr.Row():
            model = gr.Dropdown(
                names,
                label="Model" if fixed else "Model or Hub id",
                allow_custom_value=not fixed,
                visible=title != names[0],
                scale=2,
            )
            backend = gr.Dropdown(backends, label="Backend", visible=len(backends) > 1)
            threshold = gr.Slider(0, 1, value, step=0.01, label="Threshold", visible=visible)
        settings = model, backend, threshold
        with gr.Tab("Image"):
            _add_image_tab(load, settings, [(str(path), public_names[name]) for path, name in examples])
        with gr.Tab("Files"):
            _add_files_tab(load, settings)
    return app.queue(max_size=MAX_WAITING, api_open=False)


def launch(app: gr.Blocks, *, server_name: str | None = None, **options: Any) -> None:
    """Start the page, which loads no external resources.

    Requests are answered if their Host and Origin are those of this machine, see `HostMiddleware`; in a Hugging Face
    Space or with `share=True`, all are, because another server forwards them.

    Args:
        app: The page.
        server_name: Name or address to listen on. Default: the environment variable GRADIO_SERVER_NAME, or 127.0.0.1.
        options: As for `gradio.Blocks.launch`.
    """
    server_name = server_name or os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    middleware = [Middleware(SizeMiddleware)]
    if app.space_id is None and not options.get("share"):
        middleware.insert(0, Middleware(HostMiddleware, server_name=server_name))
    if ":" in server_name:
        server_name = f"[{server_name.strip('[]')}]"  # Gradio's URLs need the brackets of an IPv6 address
    theme = gr.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    app.launch(
        server_name=server_name,
        theme=theme,
        css_paths=STYLESHEET,
        footer_links=[],
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        max_file_size=MAX_DOWNLOAD_BYTES,
        _app=Server(middleware=middleware),
        **options,
    )


class Server(App):
    """Gradio's server, with `middleware` before Gradio's own, whose CORS middleware answers requests of any site."""

    def add_middleware(self, middleware_class: Any, *args: Any, **options: Any) -> None:
        """Add a middleware after the others."""
        self.user_middleware.append(Middleware(middleware_class, *args, **options))


def _public_names(models: Sequence[str]) -> dict[str, str]:
    """Return the models by unique names without local paths."""
    sources: dict[str, str] = {}
    for model in models:
        name = Path(model).resolve().name if Path(model).is_dir() else model
        number = sum(name in (other, other.rpartition(" (")[0]) for other in sources)
        sources[f"{name} ({number + 1})" if number else name] = model
    return sources


def _add_image_tab(load: Load, settings: Settings, examples: Sequence[tuple[str, str]]) -> None:
    model, backend, threshold = settings
    with gr.Row(equal_height=False):
        with gr.Column():
            image = gr.Image(
                type="filepath",
                image_mode=None,
                sources=["upload", "webcam", "clipboard"],
                label="Image",
                height=380,
                buttons=[],
                placeholder="Drop an image here or click to upload",
            )
            # The uploaded file itself: `load_image` supports more formats and has better error messages.
            _accept_uploads(image, lambda file: file and check_upload(file.path))
        with gr.Column():
            with gr.Column(visible=False) as panel:
                detections = gr.Image(
                    label="Predictions",
                    show_label=False,  # would cover a box
                    elem_id="detections",
                    buttons=["download", "fullscreen"],
                )
            # Sent with the answer instead of written to a file. Lost if the component itself is updated.
            setattr(detections, "postprocess", _embed_image)  # noqa: B010
            labels = gr.Label(label="Labels", visible=False, show_heading=False)
            note = gr.HTML(PLACEHOLDER, elem_classes="note")
            compare = gr.Button("Compare backends", visible=False, size="sm")
            table = gr.HTML(elem_classes="results")
    if examples:
        # Not gr.Examples, whose updates would replace the component and its `preprocess`.
        gallery = gr.Dataset(
            components=[image], samples=[[path] for path, _ in examples], type="index", label="Examples"
        )
        gallery.click(lambda index: examples[index], gallery, [image, model], api_visibility="private")
    inputs, outputs = [image, *settings], [labels, panel, detections, note, compare, table]
    update = {"inputs": inputs, "outputs": outputs, "show_progress_on": note, "trigger_mode": "always_last", **QUEUE}
    predict, select = partial(predict_image, load), partial(select_model, load)
    gr.on([image.change, backend.change, threshold.release], predict, api_name="predict", **update)
    selected = model.change(select, model, threshold, show_progress="hidden", api_visibility="private", **QUEUE)
    selected.then(predict, api_visibility="private", **update)
    inputs = [image, model, threshold]
    compare.click(partial(compare_on_image, load), inputs, [note, table], api_name="compare", **QUEUE)


def _add_files_tab(load: Load, settings: Settings) -> None:
    files = gr.File(file_count="multiple", label=f"Images (at most {MAX_FILES})", height=180)
    # Gradio's would create a temporary file for each upload.
    _accept_uploads(files, lambda uploads: uploads and [check_upload(file.path) for file in uploads])
    run = gr.Button("Predict", variant="primary")
    note = gr.HTML(elem_classes="note")
    table = gr.HTML(elem_classes="results")
    predict = partial(predict_uploads, load)
    run.click(predict, [files, *settings], [note, table, files], api_name="predict_files", **QUEUE)


def _accept_uploads(component: gr.Image | gr.File, preprocess: Callable[[Any], Any]) -> None:
    """Set the preprocessing of a component, and reject URLs, which Gradio would download whatever their size."""
    move = component.async_move_resource_to_block_cache

    async def move_file(path: str) -> str | None:
        if "://" in path:
            raise gr.Error("Upload the image instead of its URL.", print_exception=False)
        return await move(path)

    setattr(component, "preprocess", preprocess)  # noqa: B010
    setattr(component, "async_move_resource_to_block_cache", move_file)  # noqa: B010


# --- events ----------------------------------------------------------------------------------------------------------


def load_fixed(sources: dict[str, str], name: str, backend: str) -> Pipeline:
    """Return a pipeline of one of the given models. Errors of loading it have no local paths; these are logged.

    Raises:
        ValueError: If the backend can't run the model.
    """
    try:
        return load_pipeline(sources[name], backend)
    except (ValueError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise ValueError(f"{name} can't be run with {backend_titles()[backend]}: see the server's log.") from error


def select_model(load: Load, model: str) -> dict[str, Any]:
    """Return the update of the threshold slider for a model, hidden but for a detector."""
    try:
        value, visible = _find_threshold(load, model)
    except (ValueError, OSError) as error:
        gr.Warning(escape(str(error)))
        return HIDDEN
    return gr.update(value=value, visible=visible)


def _find_threshold(load: Load, model: str) -> tuple[float, bool]:
    """Return the recommended threshold of a model, and whether it is a detector."""
    pipeline = load(model, "torch")
    return recommended_threshold(pipeline.model.config), pipeline.task == DETECTION


def predict_image(load: Load, path: str | None, model: str, backend: str, threshold: float) -> tuple[Any, ...]:
    """Return the updates of labels, panel, detections, note, compare button and (empty) table of backends."""
    if path is None:
        return EMPTY, HIDDEN, None, PLACEHOLDER, HIDDEN, ""
    try:
        pipeline = load(model, backend)
        image, predictions, milliseconds, calls = in_turn(
            count_pixels(path), predict_upload, pipeline, path, threshold
        )
    except (ValueError, OSError) as error:
        return EMPTY, HIDDEN, None, _format_error(error), HIDDEN, ""
    finally:
        delete_uploads([path], delay=DELETE_SECONDS)
    titles = backend_titles()
    note = f"{milliseconds:.1f} ms with {titles[backend]}: median of {calls} calls, image decoding excluded"
    note, compare = f'<p class="small">{note}</p>', gr.update(visible=len(titles) > 1)
    if pipeline.task not in (DETECTION, SEGMENTATION):
        scores = {prediction["label"]: prediction["score"] for prediction in predictions}
        return gr.update(value=scores, visible=True), HIDDEN, None, note, compare, ""
    names = [str(name) for _, name in sorted((pipeline.model.config.id2label or {}).items())]
    if pipeline.task == SEGMENTATION:
        label_map = make_label_map(predictions, names)
        drawn = draw_overlay(image, label_map, dict(enumerate(names)), legend=False)
        return EMPTY, SHOWN, drawn, _format_legend(predictions, names) + note, compare, ""
    boxes = draw_detections(image, predictions, names)
    return EMPTY, SHOWN, boxes, _format_counts(predictions, names, threshold) + note, compare, ""


def compare_on_image(load: Load, path: str | None, model: str, threshold: float) -> Iterator[tuple[Any, ...]]:
    """Yield the updates of note and table of backends, row by row."""
    if path is None:
        yield _format_error("Upload an image first."), ""
        return
    try:
        for table in compare_backends(load, model, path, threshold):
            yield gr.skip(), _format_table(table)
    except UnreadableImageError as error:
        yield _format_error(error), ""
    finally:
        delete_uploads([path], delay=DELETE_SECONDS)


def predict_uploads(
    load: Load,
    paths: list[str] | None,
    model: str,
    backend: str,
    threshold: float,
    progress: gr.Progress = gr.Progress(),  # noqa: B008 (Gradio detects the default)
) -> tuple[Any, ...]:
    """Return the updates of note, with a download of the table as CSV, table of files, and (empty) files."""
    if not paths:
        return _format_error("Upload images first."), "", None
    try:
        check_uploads(paths)
        files = progress.tqdm(paths, desc="Predicting")
        table = predict_files(load(model, backend), files, threshold)
    except (ValueError, OSError) as error:
        return _format_error(error), "", None
    finally:
        delete_uploads(paths)
    return _format_download(table), _format_table(table), None


# --- HTML ------------------------------------------------------------------------------------------------------------


def _format_table(table: Table) -> str:
    """Return an HTML table whose cells wrap, so that it fits a phone."""
    head, *rows = [
        "".join(f"<{cell}>{escape(str(value))}</{cell}>" for value in row)
        for cell, row in [("th", table.headers), *(("td", row) for row in table.rows)]
    ]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _format_download(table: Table) -> str:
    """Return a link that contains the table as CSV."""
    text = io.StringIO()
    csv.writer(text).writerows([table.headers, *table.rows])
    data = base64.b64encode(text.getvalue().encode()).decode()
    return f'<p><a download="predictions.csv" href="data:text/csv;charset=utf-8;base64,{data}">Download CSV</a></p>'


def _embed_image(image: Image.Image | None) -> ImageData | None:
    return image and ImageData(url=encode_image_to_base64(image), orig_name="detections.jpg")


def _format_error(reason: Exception | str) -> str:
    prefix = "This image can't be read: " if isinstance(reason, UnreadableImageError) else ""
    return f'<p class="error" role="alert">{prefix}{escape(str(reason))}</p>'


def _format_counts(predictions: Predictions, names: Sequence[str], threshold: float) -> str:
    """Return the number of detections per class, with the color of their boxes."""
    texts = {label: f"{number} {label}" for label, number in count_labels(predictions).items()}
    return f"<p>{_format_chips(texts, names) or f'No objects above {threshold:g}.'}</p>"


def _format_legend(segments: Predictions, names: Sequence[str]) -> str:
    """Return the classes on an image with their colors and fractions of the pixels."""
    texts = {segment["label"]: f"{segment['label']} {segment['fraction']:.1%}" for segment in segments}
    return f"<p>{_format_chips(texts, names)}</p>"


def _format_chips(texts: dict[str, str], names: Sequence[str]) -> str:
    """Return texts by label, each after a dot in the color of the class."""
    colors = class_colors(names)
    return "".join(
        f'<span class="chip"><span class="dot" style="background: rgb{colors[label]}"></span>{escape(text)}</span>'
        for label, text in texts.items()
    )
