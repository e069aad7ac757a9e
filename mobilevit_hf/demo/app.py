"""The page: a photo or many files in, what is on them out."""

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
    Found,
    Table,
    answer_files,
    answer_timed,
    backend_titles,
    compare_backends,
    count,
    load_predictor,
)

# Models share the machine: one answer at a time, so that times are those of one.
QUEUE = {"concurrency_limit": 1, "concurrency_id": "models"}
# Seconds between two looks for old files of visitors, and their age then.
FORGET_FILES = (600, 3600)
NOTHING, HIDDEN = gr.update(value=None, visible=False), gr.update(visible=False)
HINT = '<p class="small">The answer comes here.</p>'
CSS = """
.gradio-container { width: 100% !important; max-width: 1080px !important; margin: 0 auto !important; }
.note p { margin: 0.3em 0; }
.note .chip { display: inline-block; margin: 0 1em 0 0; font-size: 1.15em; }
.note .dot { display: inline-block; width: 0.75em; height: 0.75em; border-radius: 50%; margin-right: 0.4em;
  box-shadow: 0 0 0 1px var(--body-text-color-subdued); }
.note .small { color: var(--body-text-color-subdued); font-size: 0.9em; }
.answers table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.answers table, .answers tr, .answers th, .answers td { border: none !important; }
.answers tr + tr td { border-top: 1px solid var(--border-color-primary) !important; }
.answers th, .answers td { padding: 0.4em 0.5em; text-align: left; vertical-align: top; }
.answers td:first-child { overflow-wrap: anywhere; min-width: 7em; }
.note .problem { color: var(--error-text-color); font-weight: 600; }
"""


def build_app(models: Sequence[str], *, fixed: bool = False, examples: Sequence[tuple[Path, str]] = ()) -> gr.Blocks:
    """The page, to be started by `launch`.

    Args:
        models: Those to choose from, as `resolve_model` takes them; at least one, and the first is chosen.
        fixed: Offer no others, as where visitors are not to name a folder of this machine.
        examples: Images to try, each with the model that it is for.

    Raises:
        ValueError: If a model can't be had, or is neither a classifier nor a detector.
    """
    for model in models:
        read_task(model, resolve_model(model))
    value, visible = _find_threshold(models[0])
    backends = [(title, backend) for backend, title in backend_titles().items()]
    title = models[0] if fixed and len(models) == 1 else "MobileViT"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=FORGET_FILES) as app:
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
        settings = [model, backend, threshold]
        with gr.Tab("Photo"):
            _add_photo(settings, examples)
        with gr.Tab("Files"):
            _add_files(settings)
    return app


def launch(app: gr.Blocks, **options: Any) -> None:
    """Start the page; options as for `gradio.Blocks.launch`. It loads nothing from elsewhere."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gr.themes.Default(primary_hue="teal", neutral_hue="slate", **fonts)
    app.launch(theme=theme, css=CSS, footer_links=[], ssr_mode=False, run_history=False, **options)


def _add_photo(settings: list[gr.Component], examples: Sequence[tuple[Path, str]]) -> None:
    model, _, threshold = settings
    with gr.Row(equal_height=False):
        with gr.Column():
            photo = gr.Image(
                type="filepath",
                image_mode=None,
                sources=["upload", "webcam", "clipboard"],
                label="Photo",
                height=380,
                buttons=[],
            )
            # The file as it came: its own loader reads more, and says what is wrong with the others.
            photo.preprocess = lambda payload: payload and payload.path
        with gr.Column():
            # Without its label, which would lie on a box.
            image = gr.Image(
                label="Found",
                show_label=False,
                elem_id="found",
                visible=False,
                format="jpeg",
                buttons=["download", "fullscreen"],
            )
            labels = gr.Label(label="Labels", visible=False, show_heading=False)
            note = gr.HTML(HINT, elem_classes="note")
            compare = gr.Button("Compare backends", visible=False, size="sm")
            table = gr.HTML(elem_classes="answers")
    if examples:
        samples = [(str(path), name) for path, name in examples]
        # Not gr.Examples, whose updates would replace the component, and with it how it reads files.
        shown = gr.Dataset(components=[photo], samples=[[path] for path, _ in samples], type="index", label="Try one")
        shown.click(lambda index: samples[index], shown, [photo, model], api_visibility="private")
    inputs, outputs = [photo, *settings], [labels, image, note, compare, table]
    again = {"inputs": inputs, "outputs": outputs, "show_progress_on": note, "trigger_mode": "always_last", **QUEUE}
    gr.on([photo.change, settings[1].change, threshold.release], answer_photo, api_name="answer", **again)
    chosen = model.change(choose_model, model, threshold, show_progress="hidden", api_visibility="private", **QUEUE)
    chosen.then(answer_photo, api_visibility="private", **again)
    compare.click(compare_photo, [photo, model, threshold], [note, table], api_name="compare", **QUEUE)


def _add_files(settings: list[gr.Component]) -> None:
    files = gr.File(file_count="multiple", label="Images", height=180)
    look = gr.Button("Answer", variant="primary")
    note = gr.HTML(elem_classes="note")
    table = gr.HTML(elem_classes="answers")
    download = gr.DownloadButton("Download as CSV", visible=False, size="sm")
    scratch: tempfile.TemporaryDirectory = tempfile.TemporaryDirectory()
    look.click(
        partial(answer_all, scratch), [files, *settings], [note, table, download], api_name="answer_files", **QUEUE
    )


# --- what happens on the page ----------------------------------------------------------------------------------------


def choose_model(model: str) -> dict[str, Any]:
    """The threshold of a model, which only detectors have."""
    try:
        value, visible = _find_threshold(model)
    except (ValueError, OSError) as error:
        gr.Warning(escape(str(error)))
        return HIDDEN
    return gr.update(value=value, visible=visible)


def _find_threshold(model: str) -> tuple[float, bool]:
    """The recommended one, and whether the model has any use for it."""
    predictor = load_predictor(model, "torch")
    return recommended_threshold(predictor.model.config), predictor.task == DETECTION


def answer_photo(path: str | None, model: str, backend: str, threshold: float) -> tuple[Any, ...]:
    """Labels or boxes of a photo, what else there is to say, the button to compare, and no table of backends yet."""
    if path is None:
        return NOTHING, NOTHING, HINT, HIDDEN, ""
    try:
        predictor, photo = load_predictor(model, backend), load_image(Path(path))
        found, milliseconds, calls = answer_timed(predictor, photo, threshold)
    except (ValueError, OSError) as error:
        return NOTHING, NOTHING, _problem(error), HIDDEN, ""
    titles = backend_titles()
    note = f"{milliseconds:.1f} ms with {titles[backend]}: from pixels to the answer, median of {calls} warm calls"
    note, compare = f'<p class="small">{note}</p>', gr.update(visible=len(titles) > 1)
    if predictor.task != DETECTION:
        scores = {one["label"]: one["score"] for one in found}
        return gr.update(value=scores, visible=True), NOTHING, note, compare, ""
    names = [name for _, name in sorted(predictor.model.config.id2label.items())]
    drawn = gr.update(value=draw_detections(photo, found, names), visible=True)
    return NOTHING, drawn, _counts(found, names, threshold) + note, compare, ""


def compare_photo(path: str | None, model: str, threshold: float) -> Iterator[tuple[Any, ...]]:
    """The table of backends, row by row."""
    if path is None:
        yield _problem("Choose a photo first."), ""
        return
    try:
        photo = load_image(Path(path))
    except UnreadableImageError as error:
        yield _problem(error), ""
        return
    for table in compare_backends(model, photo, threshold):
        yield gr.skip(), _show(table)


def answer_all(
    scratch: tempfile.TemporaryDirectory,
    paths: list[str] | None,
    model: str,
    backend: str,
    threshold: float,
    progress: gr.Progress = gr.Progress(),  # noqa: B008 (so Gradio knows to show it)
) -> tuple[Any, ...]:
    """The table of files, and as CSV in a folder that goes with the page."""
    if not paths:
        return _problem("Choose images first."), "", NOTHING
    try:
        predictor = load_predictor(model, backend)
    except (ValueError, OSError) as error:
        return _problem(error), "", NOTHING
    table = answer_files(predictor, progress.tqdm(list(map(Path, paths)), desc="Looking at images"), threshold)
    text = io.StringIO()
    csv.writer(text).writerows([table.headers, *table.rows])
    try:
        path = Path(tempfile.mkdtemp(dir=scratch.name), "answers.csv")
        write_text(path, text.getvalue())
    except OSError as error:
        return _problem(f"The answers can't be kept as CSV: {error}"), _show(table), NOTHING
    return "", _show(table), gr.update(value=str(path), visible=True)


# --- how it looks ----------------------------------------------------------------------------------------------------


def _show(table: Table) -> str:
    """As HTML, which fits a phone: its cells wrap."""
    head, *rows = [
        "".join(f"<{cell}>{escape(str(value))}</{cell}>" for value in row)
        for cell, row in [("th", table.headers), *(("td", row) for row in table.rows)]
    ]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _problem(reason: Exception | str) -> str:
    kind = "This image can't be read: " if isinstance(reason, UnreadableImageError) else ""
    return f'<p class="problem" role="alert">{kind}{escape(str(reason))}</p>'


def _counts(found: Found, names: Sequence[str], threshold: float) -> str:
    """How many boxes there are of each class, beside its color."""
    colors = class_colors(names)
    chips = "".join(
        f'<span class="chip"><span class="dot" style="background: rgb{colors[label]}"></span>{number} '
        f"{escape(label)}</span>"
        for label, number in count(found).items()
    )
    return f"<p>{chips or f'Nothing above {threshold:g}.'}</p>"
