"""Load a model for a backend: from an exported file next to it, from the cache, or by a verified export."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import BaseImageProcessor, PreTrainedModel
from transformers.utils import cached_file

from ..model_sources import has_weights, read_config
from ..records import EXPORT_FILE, ExportRecord, read_export_records
from ..tasks import TaskName
from . import cache
from .export import export_verified
from .files import check_exported, exported_files
from .formats import AUTO, FORMATS, check_backend
from .interfaces import Interface
from .precision import choose_precision, fast_precisions
from .requests import ExportRequest
from .runtime import ExportedModel, load_exported_model
from .verify import (
    MIN_AGREEMENT,
    TIE_TOLERANCE,
    Comparison,
    check_comparison,
    preprocess,
    sample_images,
    verification_pixels,
)

logger = logging.getLogger(__name__)

Exports = dict[tuple[str, str | None], tuple[ExportRecord, Path]]  # by dtype and quantization


def load_backend_model(
    model: PreTrainedModel,
    task: TaskName,
    processor: BaseImageProcessor,
    *,
    backend: str,
    dtype: str = "float32",
    quantization: str | None = None,
    threads: int | None = None,
    source: str | None = None,
    hub_kwargs: Mapping[str, Any] | None = None,
) -> ExportedModel:
    """Load a torch model's counterpart on a backend, exporting it if needed.

    Args:
        model: Torch model in float32 on the CPU; not modified.
        backend: Backend with a runtime.
        dtype: Compute dtype. "auto" chooses among the exported files of `source` or, if there are none, between
            float32 and bfloat16, which is exported and checked first; see `precision.choose_precision`.
        quantization: "int8", which requires an exported file, or None.
        threads: Number of threads. Default: torch's number of threads.
        source: Directory or Hub id of the model. An exported file there is used if it was made from the same weights
            and is unchanged; otherwise a warning is logged.
        hub_kwargs: `revision` and `token` for a Hub id.

    Raises:
        ValueError: If the backend does not support the request or is not installed, or the exported model differs from
            the torch model.
    """
    check_backend(backend, task, dtype, quantization, exports=False)
    weights, options = cache.weights_hash(model), hub_kwargs or {}
    name = cache.name_source(source) if source else None
    export = partial(_export_cached, model, task, processor, backend, weights, source=name)
    interface = FORMATS[backend].pipeline_interface
    choice = path = None
    if dtype == AUTO:
        exports = _find_exports(source, task, weights, backend, options) if source else {}
        if not exports and "bfloat16" in fast_precisions(backend):
            exports = {("bfloat16", None): export("bfloat16", min_agreement=0.0)}
        choice = choose_precision(backend, task, [record for record, _ in exports.values()])
        dtype, quantization = choice.dtype, choice.quantization
        _, path = exports.get((dtype, quantization), (None, None))
    elif source is not None:
        try:
            path = _find_exported_file(source, task, weights, backend, dtype, quantization, options)
        except ValueError as error:
            if quantization is not None:  # can't be exported without images
                raise
            logger.warning("%s Until then, a cached export is used.", error)
    if path is None and quantization is not None:
        raise _missing_quantized(source, backend, quantization)
    if path is None:
        _, path = export(dtype)
    exported = load_exported_model(
        path, model.config, task, backend, threads, interface=interface, processor=processor
    )
    exported.choice = choice
    return exported


def check_quantized(folder: Path, task: TaskName, backend: str, dtype: str, quantization: str) -> None:
    """Check that a model has a quantized file for a backend, without loading the model.

    Args:
        folder: Directory of the model.
        dtype, quantization: Precision of the file.

    Raises:
        ValueError: If it has none, or the file changed since it was recorded.
    """
    interfaces = [FORMATS[backend].pipeline_interface]
    if not has_weights(folder):  # see `load_exported_folder`
        interfaces += set(FORMATS[backend].interfaces[task]) & {"image"}
    find = partial(_find_exported_file, str(folder), task, None, backend, dtype, quantization, {})
    if not any(map(find, interfaces)):
        raise _missing_quantized(str(folder), backend, quantization)


def _missing_quantized(source: str | None, backend: str, quantization: str) -> ValueError:
    return ValueError(
        f"quantization: {source or 'the model'} has no {quantization} file for {backend}. Create it from images: "
        f"mobilevit export MODEL OUT --to {backend} --quantization {quantization} --calibration DATA"
    )


def export_image_file(
    model: PreTrainedModel,
    task: TaskName,
    processor: BaseImageProcessor,
    *,
    backend: str = "onnx",
    dtype: str = "float32",
    source: str | None = None,
) -> tuple[ExportRecord, Path]:
    """Return a verified file of the interface "image" in the cache and its record, exporting the model if needed.

    Args:
        model: Torch model in float32 on the CPU; not modified.
        source: Directory or Hub id of the model, recorded for `mobilevit cache`.

    Raises:
        ValueError: If the backend does not support the request or is not installed, or the exported model differs from
            the torch model.
    """
    weights, name = cache.weights_hash(model), cache.name_source(source) if source else None
    return _export_cached(model, task, processor, backend, weights, dtype, source=name, interface="image")


def _export_cached(
    model: PreTrainedModel,
    task: TaskName,
    processor: BaseImageProcessor,
    backend: str,
    weights: str,
    dtype: str,
    min_agreement: float = MIN_AGREEMENT,
    source: str | None = None,
    interface: Interface | None = None,
) -> tuple[ExportRecord, Path]:
    """Return a cached export and its record, exporting the model if it is missing.

    Args:
        weights: Hash of the model's weights.
        min_agreement: Smallest agreement in lower precision with the torch model on sample images.
        source: Name of the model for `mobilevit cache`.
        interface: Interface of the file. Default: that of the backend's pipelines.

    Raises:
        ValueError: If the backend does not support the request or is not installed, or the exported model differs from
            the torch model.
    """
    check_backend(backend, task, dtype, None, interface)
    interface = interface or FORMATS[backend].pipeline_interface

    def write(file: Path) -> dict[str, Any]:
        pixels = verification_pixels(task, processor)
        request = ExportRequest(model, task, processor, pixels, dtype, interface)
        measured = export_verified(request, backend, file, TIE_TOLERANCE, min_agreement)
        return measured | {"num_images": len(pixels), "images": "samples"}

    height, width = preprocess(sample_images(1), processor).shape[2:]
    path = cache.get_or_create(weights, backend, dtype, (height, width), write, source, interface)
    record = cache.read_entry(path)
    if record.max_error is not None and record.agreement is not None:  # may have been cached with a lower limit
        name = f"{FORMATS[backend].title} in {dtype}"
        comparison = Comparison(record.max_error, record.agreement)
        check_comparison(comparison, name, float32=dtype == "float32", min_agreement=min_agreement)
    return record, path


def load_exported_folder(
    folder: Path,
    task: TaskName,
    processor: BaseImageProcessor,
    *,
    backend: str,
    dtype: str,
    quantization: str | None,
    threads: int | None,
) -> ExportedModel:
    """Load an exported model from a folder without weights; arguments as for `load_backend_model`.

    Raises:
        ValueError: If the folder has no matching file.
    """
    choice = None
    if dtype == AUTO:
        exports = _find_exports(str(folder), task, None, backend, {})
        choice = choose_precision(backend, task, [record for record, _ in exports.values()])
        dtype, quantization = choice.dtype, choice.quantization
    interface = FORMATS[backend].pipeline_interface
    path = _find_exported_file(str(folder), task, None, backend, dtype, quantization, {}, interface)
    if path is None and "image" in FORMATS[backend].interfaces[task]:  # what is exported of a detector by default
        interface = "image"
        path = _find_exported_file(str(folder), task, None, backend, dtype, quantization, {}, interface)
    if path is None:
        files = [record.file for record in read_export_records(folder / EXPORT_FILE)]
        raise ValueError(
            f"{folder}: got no weights and {', '.join(files) or 'no exported files'}, expected "
            f"{FORMATS[backend].path(task, interface, dtype, quantization)}. Pass the model it was exported from, or "
            "another dtype."
        )
    config = read_config(folder, trust_remote_code=False)
    exported = load_exported_model(path, config, task, backend, threads, interface=interface, processor=processor)
    exported.choice = choice
    return exported


def _find_exports(
    source: str, task: TaskName, weights: str | None, backend: str, hub_kwargs: Mapping[str, Any]
) -> Exports:
    """Return the exported files of a directory or repository for a backend.

    A warning is logged for each file that was made from other weights, or changed. Arguments as for
    `_find_exported_file`.
    """
    exports: Exports = {}
    records, _ = _read_records(source, hub_kwargs)
    for record in records:
        precisions = (*FORMATS[backend].dtypes, *FORMATS[backend].quantizations)
        if (
            record.backend == backend
            and record.interface == FORMATS[backend].pipeline_interface
            and record.dtype
            and (record.quantization or record.dtype) in precisions
        ):
            try:
                precision = record.dtype, record.quantization
                path = _find_exported_file(source, task, weights, backend, *precision, hub_kwargs)
            except ValueError as error:
                logger.warning("%s Until then, it is not used.", error)
            else:
                if path:
                    exports[record.dtype, record.quantization] = record, path
    return exports


def _read_records(source: str, hub_kwargs: Mapping[str, Any]) -> tuple[list[ExportRecord], dict[str, Any]]:
    """Return the records of the exported files of a directory or repository, and arguments to find the files."""
    options = {name: value for name, value in hub_kwargs.items() if name in ("revision", "token")}
    options |= {f"_raise_exceptions_for_{problem}": False for problem in ("missing_entries", "connection_errors")}
    file = cached_file(source, EXPORT_FILE, **options)
    return read_export_records(Path(file)) if file else [], options


def _find_exported_file(
    source: str,
    task: TaskName,
    weights: str | None,
    backend: str,
    dtype: str,
    quantization: str | None,
    hub_kwargs: Mapping[str, Any],
    interface: Interface | None = None,
) -> Path | None:
    """Return the exported file of a directory or repository, None if none is recorded.

    Args:
        weights: Hash of the weights that it was made from. None matches any, for a directory without weights.
        interface: Interface of the file. Default: that of the backend's pipelines.

    Raises:
        ValueError: If the recorded file was made from other weights, or is another file than when it was recorded.
    """
    records, options = _read_records(source, hub_kwargs)
    interface = interface or FORMATS[backend].pipeline_interface
    file = FORMATS[backend].path(task, interface, dtype, quantization)
    key = (backend, interface, dtype, quantization, file)
    recorded = [
        record
        for record in records
        if (record.backend, record.interface, record.dtype, record.quantization, record.file) == key
    ]
    if not recorded:
        return None
    paths = [cached_file(source, str(part), **options) for part in exported_files(Path(file))]
    path = Path(paths[0] or Path(source, file))
    matching = [record for record in recorded if weights in (None, record.weights)]
    if not matching:
        raise ValueError(f"{path}: got an export of other weights, expected the model's. Run mobilevit export again.")
    check_exported(path, matching)
    return path
