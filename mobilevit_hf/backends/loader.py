"""From a model to the same on another engine: ready files, the cache, or an export that is checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, BaseImageProcessor, PreTrainedModel
from transformers.utils import cached_file

from . import cache
from .export import export_program, program_bytes, program_files
from .formats import FORMATS, check_request
from .runtime import ENGINES, EngineModel, load_program
from .verify import NUM_IMAGES, TIE, Comparison, check, compare, draw_images, prepare


def open_model(
    model: PreTrainedModel,
    task: str,
    processor: BaseImageProcessor,
    *,
    backend: str,
    dtype: str = "float32",
    quantization: str | None = None,
    threads: int | None = None,
    source: str | None = None,
    hub_kwargs: Mapping[str, Any] | None = None,
) -> EngineModel:
    """A model on another engine.

    Args:
        model: In float32, on the CPU; left as it is.
        task: A key of `formats.OUTPUTS`.
        processor: The model's image processor.
        backend: One of `runners.ENGINES`.
        dtype: What to compute in, a key of `formats.DTYPES`.
        quantization: "int8", for which there must be a ready file, or None.
        threads: How many to use; torch's number, which follows the machine, if not given.
        source: The directory or Hub id the model is from. An exported file there is taken, if it was made of the very
            same weights.
        hub_kwargs: `revision`, `token` and the like, for a Hub id.

    Raises:
        ValueError: If the engine is not installed or can't do it, or the exported program is not the model.
    """
    format = check_request(backend, task, dtype, quantization)
    weights = cache.weights_hash(model)
    path = None
    if source is not None:
        path = _ready_file(source, weights, backend, dtype, quantization, dict(hub_kwargs or {}))
    if path is None and quantization is not None:
        raise ValueError(
            f"quantization: {source or 'the model'} has no {quantization} file for {backend}, and making one takes "
            f"images: mobilevit export MODEL OUT --to {backend} --quantization {quantization} --calibration DATA"
        )
    if path is None:

        def write(folder: Path) -> dict[str, Any]:
            file, pixels = folder / format.path(dtype, None), check_pixels(task, processor)
            comparison = export_checked(model, task, processor, backend, file, pixels, dtype)
            return {"bytes": program_bytes(file), **comparison._asdict()}

        height, width = prepare(draw_images(1), processor).shape[2:]
        path = cache.fetch(weights, backend, dtype, (height, width), write)
    return load_program(path, model.config, task, backend, threads)


def open_export(
    folder: Path, task: str, *, backend: str, dtype: str, quantization: str | None, threads: int | None
) -> EngineModel:
    """The program in a folder that `mobilevit export` wrote and that holds no weights; arguments as for `open_model`.

    Raises:
        ValueError: If there is none of this kind.
    """
    check_request(backend, task, dtype, quantization)
    path = _ready_file(str(folder), None, backend, dtype, quantization, {})
    if path is None:
        there = [entry.get("file") for entry in cache.read_record(folder / cache.RECORD)]
        raise ValueError(
            f"{folder} holds no weights, and {' and '.join(map(str, there)) or 'nothing'} for engines; expected "
            f"{FORMATS[backend].path(dtype, quantization)}. Name the model it was exported from."
        )
    return load_program(path, AutoConfig.from_pretrained(folder, trust_remote_code=False), task, backend, threads)


def check_pixels(task: str, processor: BaseImageProcessor) -> Tensor:
    """The images that exports for a task are checked on, as a model takes them."""
    return prepare(draw_images(NUM_IMAGES[task]), processor)


def export_checked(
    model: PreTrainedModel,
    task: str,
    processor: BaseImageProcessor,
    backend: str,
    path: Path,
    pixels: Tensor,
    dtype: str,
    tie: float = TIE,
) -> Comparison | None:
    """Export a model into a scratch folder, and compare it on `pixels`; None for Core ML, which only runs in an app.

    Raises:
        ValueError: If the program is not the model.
    """
    export_program(model, task, backend, path, pixels, dtype)
    if backend not in ENGINES:
        return None
    program = load_program(path, model.config, task, backend, None)
    comparison = compare(model, program, pixels, task, processor, tie)
    check(comparison, f"{FORMATS[backend].title} in {dtype}", exact=dtype == "float32")
    return comparison


def _ready_file(
    source: str, weights: str | None, backend: str, dtype: str, quantization: str | None, hub_kwargs: dict[str, Any]
) -> Path | None:
    """An exported file in a model's folder or repository, if it was made of these weights; None stands for any."""
    options = {name: value for name, value in hub_kwargs.items() if name in ("revision", "token")}
    options |= dict.fromkeys(
        ("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors"), False
    )
    record = cached_file(source, cache.RECORD, **options)
    if record is None:
        return None
    path = FORMATS[backend].path(dtype, quantization)
    for entry in cache.read_record(Path(record)):
        wanted = {"backend": backend, "dtype": dtype, "quantization": quantization, "file": path}
        if weights is not None:
            wanted["weights"] = weights
        if all(entry.get(name) == value for name, value in wanted.items()):
            files = [cached_file(source, str(part), **options) for part in program_files(Path(path))]
            return Path(files[0]) if None not in files else None
    return None
