"""Gradio page: classify or detect objects in one image or many files, and compare backends."""

import csv
import io
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..data.images import UnreadableImageError, load_image
from ..io import write_text
from ..model_sources import read_task, recommended_threshold, resolve_model
from ..visualization import class_colors, draw_detections
from .inference import (
    DETECTION,
    Predictions,
    Table,
    backend_titles,
    compare_backends,
    count_labels,
    load_pipeline,
    predict_files,
    predict_timed,
)

# One prediction at a time, so that concurrent visitors do not slow down the measured latency.
QUEUE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "models"}
# Model, backend and threshold.
Settings = tuple[gr.Dropdown, gr.Dropdown, gr.Slider]
# Interval at which uploaded files are deleted, and their minimum age, in seconds.
DELETE_UPLOADS = (600, 3600)
EMPTY, HIDDEN = gr.update(value=None, visible=False), gr.update(visible=False)
PLACEHOLDER = '<p class="small">Predictions appear here.</p>'
STYLESHEET = Path(__file__).with_name("page.css")


def build_app(models: Sequence[str], *, fixed: bool = False, examples: Sequence[tuple[Path, str]] = ()) -> gr.Blocks:
    """Return the demo page, to be started with `launch`.

    Args:
        models: Models to choose from, as for `resolve_model`; at least one, the first is selected.
        fixed: Allow no other models, so that visitors can't open local folders.
        examples: Example images, each with its model.

    Raises:
        ValueError: If a model does not exist, or is neither a classifier nor a detector.
    """
    for model in models:
        read_task(model, resolve_model(model))
    value, visible = _find_threshold(models[0])
    backends = [(title, backend) for backend, title in backend_titles().items()]
    title = models[0] if fixed and len(models) == 1 else "MobileViT"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=DELETE_UPLOADS) as app:
        gr.Markdown(f"# {title}")
        with gr.Row():
            model = gr.Dropdown(
                list(models),
                label="Model" if fixed else "Model or Hub id",
                allow_custom_value=not fixed,
                visible=title != models[0],
                scale=2,
            )
            backend = gr.Dropdown(backends, label="Backend", visible=len(backends) > 1)
            threshold = gr.Slider(0, 1, value, step=0.01, label="Threshold", visible=visible)
        settings = model, backend, threshold
        with gr.Tab("Image"):
            _add_image_tab(settings, examples)
        with gr.Tab("Files"):
            _add_files_tab(settings)
    return app


def launch(app: gr.Blocks, **options: Any) -> None:
    """Start the page, which loads no external resources; options as for `gradio.Blocks.launch`."""
    theme = gr.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    app.launch(theme=theme, css_paths=STYLESHEET, footer_links=[], ssr_mode=False, run_history=False, **options)


def _add_image_tab(settings: Settings, examples: Sequence[tuple[Path, str]]) -> None:
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
            setattr(image, "preprocess", lambda payload: payload and payload.path)  # noqa: B010
        with gr.Column():
            detections = gr.Image(
                label="Detections",
                show_label=False,  # would cover a box
                elem_id="detections",
                visible=False,
                format="jpeg",
                buttons=["download", "fullscreen"],
            )
            labels = gr.Label(label="Labels", visible=False, show_heading=False)
            note = gr.HTML(PLACEHOLDER, elem_classes="note")
            compare = gr.Button("Compare backends", visible=False, size="sm")
            table = gr.HTML(elem_classes="results")
    if examples:
        samples = [(str(path), name) for path, name in examples]
        # Not gr.Examples, whose updates would replace the component and its `preprocess`.
        gallery = gr.Dataset(
            components=[image], samples=[[path] for path, _ in samples], type="index", label="Examples"
        )
        gallery.click(lambda index: samples[index], gallery, [image, model], api_visibility="private")
    inputs, outputs = [image, *settings], [labels, detections, note, compare, table]
    update = {"inputs": inputs, "outputs": outputs, "show_progress_on": note, "trigger_mode": "always_last", **QUEUE}
    gr.on([image.change, backend.change, threshold.release], predict_image, api_name="predict", **update)
    selected = model.change(select_model, model, threshold, show_progress="hidden", api_visibility="private", **QUEUE)
    selected.then(predict_image, api_visibility="private", **update)
    compare.click(compare_on_image, [image, model, threshold], [note, table], api_name="compare", **QUEUE)


def _add_files_tab(settings: Settings) -> None:
    files = gr.File(file_count="multiple", label="Images", height=180)
    run = gr.Button("Predict", variant="primary")
    note = gr.HTML(elem_classes="note")
    table = gr.HTML(elem_classes="results")
    download = gr.DownloadButton("Download CSV", visible=False, size="sm")
    folder: tempfile.TemporaryDirectory = tempfile.TemporaryDirectory()
    predict, outputs = partial(predict_uploads, folder), [note, table, download]
    run.click(predict, [files, *settings], outputs, api_name="predict_files", **QUEUE)


# --- events ----------------------------------------------------------------------------------------------------------


def select_model(model: str) -> dict[str, Any]:
    """Return the update of the threshold slider for a model, hidden for a classifier."""
    try:
        value, visible = _find_threshold(model)
    except (ValueError, OSError) as error:
        gr.Warning(escape(str(error)))
        return HIDDEN
    return gr.update(value=value, visible=visible)


def _find_threshold(model: str) -> tuple[float, bool]:
    """Return the recommended threshold of a model, and whether it is a detector."""
    pipeline = load_pipeline(model, "torch")
    return recommended_threshold(pipeline.model.config), pipeline.task == DETECTION


def predict_image(path: str | None, model: str, backend: str, threshold: float) -> tuple[Any, ...]:
    """Return the updates of labels, detections, note, compare button and (empty) table of backends."""
    if path is None:
        return EMPTY, EMPTY, PLACEHOLDER, HIDDEN, ""
    try:
        pipeline, image = load_pipeline(model, backend), load_image(Path(path))
        predictions, milliseconds, calls = predict_timed(pipeline, image, threshold)
    except (ValueError, OSError) as error:
        return EMPTY, EMPTY, _format_error(error), HIDDEN, ""
    titles = backend_titles()
    note = f"{milliseconds:.1f} ms with {titles[backend]}: median of {calls} calls, image decoding excluded"
    note, compare = f'<p class="small">{note}</p>', gr.update(visible=len(titles) > 1)
    if pipeline.task != DETECTION:
        scores = {prediction["label"]: prediction["score"] for prediction in predictions}
        return gr.update(value=scores, visible=True), EMPTY, note, compare, ""
    names = [str(name) for _, name in sorted((pipeline.model.config.id2label or {}).items())]
    boxes = gr.update(value=draw_detections(image, predictions, names), visible=True)
    return EMPTY, boxes, _format_counts(predictions, names, threshold) + note, compare, ""


def compare_on_image(path: str | None, model: str, threshold: float) -> Iterator[tuple[Any, ...]]:
    """Yield the updates of note and table of backends, row by row."""
    if path is None:
        yield _format_error("Upload an image first."), ""
        return
    try:
        image = load_image(Path(path))
    except UnreadableImageError as error:
        yield _format_error(error), ""
        return
    for table in compare_backends(model, image, threshold):
        yield gr.skip(), _format_table(table)


def predict_uploads(
    folder: tempfile.TemporaryDirectory,
    paths: list[str] | None,
    model: str,
    backend: str,
    threshold: float,
    progress: gr.Progress = gr.Progress(),  # noqa: B008 (Gradio detects the default)
) -> tuple[Any, ...]:
    """Return the updates of note, table of files and its CSV download; the CSV is written to the temporary folder."""
    if not paths:
        return _format_error("Upload images first."), "", EMPTY
    try:
        pipeline = load_pipeline(model, backend)
    except (ValueError, OSError) as error:
        return _format_error(error), "", EMPTY
    table = predict_files(pipeline, progress.tqdm(list(map(Path, paths)), desc="Predicting"), threshold)
    text = io.StringIO()
    csv.writer(text).writerows([table.headers, *table.rows])
    try:
        path = Path(tempfile.mkdtemp(dir=folder.name), "predictions.csv")
        write_text(path, text.getvalue())
    except OSError as error:
        return _format_error(f"The CSV file can't be written: {error}"), _format_table(table), EMPTY
    return "", _format_table(table), gr.update(value=str(path), visible=True)


# --- HTML ------------------------------------------------------------------------------------------------------------


def _format_table(table: Table) -> str:
    """Return an HTML table whose cells wrap, so that it fits a phone."""
    head, *rows = [
        "".join(f"<{cell}>{escape(str(value))}</{cell}>" for value in row)
        for cell, row in [("th", table.headers), *(("td", row) for row in table.rows)]
    ]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _format_error(reason: Exception | str) -> str:
    prefix = "This image can't be read: " if isinstance(reason, UnreadableImageError) else ""
    return f'<p class="error" role="alert">{prefix}{escape(str(reason))}</p>'


def _format_counts(predictions: Predictions, names: Sequence[str], threshold: float) -> str:
    """Return the number of detections per class, with the color of their boxes."""
    colors = class_colors(names)
    chips = "".join(
        f'<span class="chip"><span class="dot" style="background: rgb{colors[label]}"></span>{number} '
        f"{escape(label)}</span>"
        for label, number in count_labels(predictions).items()
    )
    return f"<p>{chips or f'No objects above {threshold:g}.'}</p>"
