"""Load a model for a backend: from an exported file next to it, from the cache, or by a verified export."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import BaseImageProcessor, PreTrainedModel
from transformers.utils import cached_file

from ..model_sources import read_config
from ..records import EXPORT_FILE, read_export_records
from ..tasks import TaskName
from . import cache
from .export import export_verified
from .files import check_exported, exported_files
from .formats import FORMATS, check_backend
from .runtime import ExportedModel, load_exported_model
from .verify import preprocess, sample_images, verification_pixels

logger = logging.getLogger(__name__)


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
        quantization: "int8", which requires an exported file, or None.
        threads: Number of threads. Default: torch's number of threads.
        source: Directory or Hub id of the model. An exported file there is used if it was made from the same weights
            and is unchanged; otherwise a warning is logged.
        hub_kwargs: `revision` and `token` for a Hub id.

    Raises:
        ValueError: If the backend does not support the request or is not installed, or the exported model differs from
            the torch model.
    """
    check_backend(backend, task, dtype, quantization)
    weights = cache.weights_hash(model)
    path = None
    if source is not None:
        try:
            path = _find_exported_file(source, weights, backend, dtype, quantization, hub_kwargs or {})
        except ValueError as error:
            if quantization is not None:  # can't be exported without images
                raise
            logger.warning("%s Until then, a cached export is used.", error)
    if path is None and quantization is not None:
        raise ValueError(
            f"quantization: {source or 'the model'} has no {quantization} file for {backend}. Create it from images: "
            f"mobilevit export MODEL OUT --to {backend} --quantization {quantization} --calibration DATA"
        )
    if path is None:

        def write(file: Path) -> dict[str, Any]:
            pixels = verification_pixels(task, processor)
            return export_verified(model, task, processor, backend, file, pixels, dtype)

        height, width = preprocess(sample_images(1), processor).shape[2:]
        path = cache.get_or_create(weights, backend, dtype, (height, width), write)
    return load_exported_model(path, model.config, task, backend, threads)


def load_exported_folder(
    folder: Path, task: TaskName, *, backend: str, dtype: str, quantization: str | None, threads: int | None
) -> ExportedModel:
    """Load an exported model from a folder without weights; arguments as for `load_backend_model`.

    Raises:
        ValueError: If the folder has no matching file.
    """
    path = _find_exported_file(str(folder), None, backend, dtype, quantization, {})
    if path is None:
        files = [record.file for record in read_export_records(folder / EXPORT_FILE)]
        raise ValueError(
            f"{folder}: got no weights and {', '.join(files) or 'no exported files'}, expected "
            f"{FORMATS[backend].path(dtype, quantization)}. Pass the model it was exported from."
        )
    return load_exported_model(path, read_config(folder, trust_remote_code=False), task, backend, threads)


def _find_exported_file(
    source: str, weights: str | None, backend: str, dtype: str, quantization: str | None, hub_kwargs: Mapping[str, Any]
) -> Path | None:
    """Return the exported file of a directory or repository, None if none is recorded.

    Args:
        weights: Hash of the weights that it was made from. None matches any, for a directory without weights.

    Raises:
        ValueError: If the recorded file was made from other weights, or is another file than when it was recorded.
    """
    options = {name: value for name, value in hub_kwargs.items() if name in ("revision", "token")}
    options |= {f"_raise_exceptions_for_{problem}": False for problem in ("missing_entries", "connection_errors")}
    records = cached_file(source, EXPORT_FILE, **options)
    if records is None:
        return None
    file = FORMATS[backend].path(dtype, quantization)
    key = (backend, dtype, quantization, file)
    recorded = [
        record
        for record in read_export_records(Path(records))
        if (record.backend, record.dtype, record.quantization, record.file) == key
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
