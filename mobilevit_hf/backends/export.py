"""Export a model to files for other runtimes, verify them, and record what was measured."""

import os
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from ..environment import describe_hardware
from ..io import write_atomically
from ..model_sources import has_weights, load_image_processor, read_task, resolve_model
from ..records import EXPORT_FILE, DropRecord, ExportRecord, HardwareRecord, read_export_records, write_export_records
from ..tasks import EXPORTABLE_TASKS, TaskName
from . import cache
from .files import exported_bytes, hash_files, replace_exported
from .formats import ALL, AUTO, FORMATS, check_backend, check_packages
from .interfaces import Interface
from .precision import choose_precision, fast_precisions, is_accurate, lower_precisions
from .pytorch import load_model
from .requests import ExportRequest
from .runtime import ExportedModel, load_exported_model
from .tracing import quiet
from .transformers_js import write_browser_configs
from .verify import MIN_AGREEMENT, TIE_TOLERANCE, check_comparison, compare, measure_latency, verification_pixels

if TYPE_CHECKING:
    from .quantization import CalibrationImages

# What an app needs next to the exported file.
CONFIG_FILES = ("config.json", "preprocessor_config.json")
# CPU seconds of the steps for an XXS classifier, imports included, from which the remaining time is estimated.
LOAD_SECONDS = 7.0
STEP_SECONDS = {"export": 17.0, "verify": 1.0, "time": 1.0, "write": 0.1}
CONVERSION_SECONDS = 2.0  # of the export of a graph that another file was made from
GRAPH_FILES = ("onnx/model.", "openvino/openvino_model.")  # the float32 files of a classifier, made from one graph


class Step(NamedTuple):
    """A step of an export, which begins.

    Attributes:
        name: "load", or "export", "verify", "time" or "write" of a file.
        file: Path of the file relative to the output directory, "" while the model is loaded.
        number: Number of the step, from 1 to `total`.
        fraction: Fraction of the estimated time that the earlier steps take, 0..1.
    """

    name: str
    file: str
    number: int
    total: int
    fraction: float


def export_model(
    model: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    backends: str | Iterable[str],
    *,
    dtype: str = AUTO,
    quantization: str | None = None,
    interface: str | None = None,
    calibration: str | None = None,
    max_drop: float = 1.0,
    log: Callable[[str], object] = print,
    progress: Callable[[ExportRecord], object] | None = None,
    note: Callable[[str], object] = print,
    on_step: Callable[[Step], object] | None = None,
) -> list[ExportRecord]:
    """Export a model to one file per backend; of a detector or segmentation model, ONNX also has one for browsers.

    Each file is compared with the torch model and kept only if its predictions agree; measurements are written to
    `export.json`. Core ML files are not run, so they are not verified.

    Args:
        model: Directory, built-in name or Hub id.
        output_dir: Directory to write; may be the model's own.
        backends: One or more keys of `FORMATS`: "onnx", "openvino", "executorch", "litert", "coreml". "all": those
            that are installed and support the request; the others are named by `note`.
        dtype: Compute dtype: "float32", "float16" or "bfloat16", as the backend supports. "auto": float32 and, with
            `calibration`, without `quantization` and on a processor with bfloat16 instructions, for OpenVINO also
            bfloat16 if at least 99% of the predictions on these images agree.
        quantization: "int8" for a quantized file; requires `calibration`.
        interface: "image": the file takes an image, uint8 RGB, and returns labels or boxes. "tensors": it takes the
            output of the image processor and returns that of the model. Default: "image" for LiteRT and Core ML, and
            in ONNX for detectors and segmentation models, which get a file for transformers.js too; else "tensors".
            See `interfaces.Interface`.
        calibration: Dataset or folder of images like those the model will see, for verification and quantization.
        max_drop: Largest accuracy drop by quantization, in percentage points.
        log: Called with one line of text for each unreadable calibration image.
        progress: Called with each record after its file is written.
        note: Called with one line of text for each backend whose precision was chosen by "auto" on calibration
            images, and if an accuracy drop is measured without labels.
        on_step: Called at the beginning of each step.

    Returns:
        A record per file, as in `export.json`: `backend`, `file`, `dtype`, `agreement`, `latency_ms` and others.

    Raises:
        ValueError: If a backend does not support the request or is not installed, the model can't be loaded, or an
            exported file differs from the torch model. Files of earlier backends are kept.
        OSError: If a file can't be written.
    """
    if quantization and not calibration:
        raise ValueError(
            f"quantization: got {quantization!r} without images, expected some to calibrate and verify it. Pass a "
            "folder as calibration."
        )
    backends = [backends] if isinstance(backends, str) else list(dict.fromkeys(backends))
    folder, output_dir = resolve_model(os.fspath(model)), Path(output_dir)
    task = read_task(os.fspath(model), folder, EXPORTABLE_TASKS).name

    def check(backend: str) -> None:
        check_backend(backend, task, dtype, quantization, interface)
        if quantization:
            check_packages(f"quantization: {quantization!r}", FORMATS[backend].int8_packages, FORMATS[backend].extra)

    if ALL in backends:
        backends = _select_supported(check, note)
    for backend in backends:
        check(backend)
    if calibration:
        from ..data.reading import check_source  # imports datasets

        check_source(calibration, None)
    chooses = dtype == AUTO and calibration is not None and not quantization
    optional = [backend for backend in backends if chooses and "bfloat16" in fast_precisions(backend)]
    dtype = "float32" if dtype == AUTO else dtype
    interfaces = {
        backend: [cast("Interface", interface)] if interface else FORMATS[backend].default_interfaces(task)
        for backend in backends
    }
    files = [
        FORMATS[backend].path(task, each, dtype, quantization) for backend in backends for each in interfaces[backend]
    ]
    files += [FORMATS[backend].path(task, "tensors", "bfloat16") for backend in optional]
    steps = _Steps(files, on_step)
    steps.begin("load")
    torch_model, _ = load_model(task, str(folder), {"trust_remote_code": False})
    processor = load_image_processor(folder, trust_remote_code=False)
    pixels, images = verification_pixels(task, processor), None
    if calibration:
        from .quantization import load_calibration_images  # imports datasets

        images = load_calibration_images(calibration, task, processor)
        for problem in images.problems:
            log(f"{problem.name}: {problem.reason}")
        if quantization and images.note:
            note(images.note)
    weights = cache.weights_hash(torch_model)
    exporter = _Exporter(folder, output_dir, torch_model, task, processor, weights, pixels, images, max_drop, steps)
    records: list[ExportRecord] = []

    def add(record: ExportRecord) -> None:
        records.append(record)
        if progress:
            progress(record)

    for backend in backends:
        for each in interfaces[backend]:
            add(exporter.export(backend, each, dtype, quantization))
        if chooses and lower_precisions(backend):
            rejected = []
            if backend in optional:
                try:
                    add(exporter.export(backend, "tensors", "bfloat16", None, is_optional=True))
                except InaccurateError as error:
                    rejected.append(error.record)
            kept = [record for record in read_export_records(output_dir / EXPORT_FILE) if record.backend == backend]
            note(choose_precision(backend, task, kept + rejected).describe(backend))
    return records


def _select_supported(check: Callable[[str], object], note: Callable[[str], object]) -> list[str]:
    """Return the backends that pass a check; name the others with the reason.

    Raises:
        ValueError: If none does.
    """
    supported, reasons = [], {}
    for backend in FORMATS:
        try:
            check(backend)
        except ValueError as error:
            reasons[backend] = str(error)
        else:
            supported.append(backend)
    if not supported:
        first = next(iter(reasons.values()))
        raise ValueError(f"backends: got all, of which none can be exported. The first: {first}")
    for backend, reason in reasons.items():
        note(f"Not exported to {backend}: {reason}")
    return supported


class _Steps:
    """The steps of an export, which are reported as they begin.

    Args:
        files: Files to write, in any order.
    """

    def __init__(self, files: list[str], on_step: Callable[[Step], object] | None) -> None:
        self.on_step = on_step
        self.converted = [file for file in files if file.startswith(GRAPH_FILES)][1:]
        self.total = 1 + len(STEP_SECONDS) * len(files)
        self.seconds = LOAD_SECONDS + sum(self._seconds(name, file) for file in files for name in STEP_SECONDS)
        self.number, self.done, self.current = 0, 0.0, 0.0

    def begin(self, name: str, file: str = "") -> None:
        """Report the beginning of a step."""
        self.number, self.done = self.number + 1, self.done + self.current
        self.current = self._seconds(name, file)
        if self.on_step:
            self.on_step(Step(name, file, self.number, self.total, min(1.0, self.done / self.seconds)))

    def _seconds(self, name: str, file: str) -> float:
        if not file:
            return LOAD_SECONDS
        return CONVERSION_SECONDS if name == "export" and file in self.converted else STEP_SECONDS[name]


class InaccurateError(Exception):
    """An optional export in lower precision whose check failed; not written."""

    def __init__(self, record: ExportRecord) -> None:
        super().__init__(record)
        self.record = record


@dataclass(frozen=True)
class _Exporter:
    """Exports of one model to one directory.

    Attributes:
        folder: Directory of the model.
        weights: Hash of its weights.
        pixels: (B, 3, H, W) outputs of the image processor for sample images.
        images: The user's images, None to verify on the sample images.
        max_drop: Largest accuracy drop by quantization, in percentage points.
        steps: Called at the beginning of each step.
    """

    folder: Path
    output_dir: Path
    model: PreTrainedModel
    task: TaskName
    processor: BaseImageProcessor
    weights: str
    pixels: Tensor
    images: "CalibrationImages | None"
    max_drop: float
    steps: "_Steps"

    def export(
        self,
        backend: str,
        interface: Interface,
        dtype: str,
        quantization: str | None,
        *,
        is_optional: bool = False,
    ) -> ExportRecord:
        """Write a file if it passes its check, and its record to `export.json`.

        Args:
            is_optional: Whether the file is for `dtype="auto"`, which has stricter limits.

        Raises:
            InaccurateError: If an optional file is not accurate enough. A record of an earlier file is removed.
            ValueError, OSError: As `export_model`.
        """
        file = FORMATS[backend].path(self.task, interface, dtype, quantization)
        try:
            with replace_exported(self.output_dir / file) as path:
                begin = partial(self.steps.begin, file=file)
                request = ExportRequest(self.model, self.task, self.processor, self.pixels, dtype, interface)
                min_agreement = 0.0 if is_optional else MIN_AGREEMENT
                measured = self._write(request, backend, quantization, path, min_agreement, begin)
                begin("write")
                record = ExportRecord(
                    backend=backend,
                    file=file,
                    dtype=dtype,
                    quantization=quantization,
                    interface=interface,
                    bytes=exported_bytes(path),
                    weights=self.weights,
                    files=hash_files(path),
                    size=list(self.pixels.shape[2:]),
                    versions=cache.package_versions(FORMATS[backend]),
                    machine=HardwareRecord(**describe_hardware()),
                    **measured,
                )
                if is_optional and not is_accurate(record):
                    raise InaccurateError(record)
                _announce(self.output_dir, record, self.folder)
        except InaccurateError:
            _write_records(self.output_dir, file)
            raise
        _write_records(self.output_dir, file, record)
        if interface == "transformers.js":
            write_browser_configs(self.output_dir, self.task, request.labels, self.processor)
        return record

    def _write(
        self,
        request: ExportRequest,
        backend: str,
        quantization: str | None,
        path: Path,
        min_agreement: float,
        begin: Callable[[str], object],
    ) -> dict[str, Any]:
        """Write and verify a file, and return fields of its record."""
        images = self.images
        if images:  # a model is confident on real images: no ties
            request = replace(request, pixels=images.calibration)
        if quantization and images:
            measured = _export_int8(request, backend, path, images, self.max_drop, begin)
        else:
            tie_tolerance = 0.0 if images else TIE_TOLERANCE
            measured = export_verified(request, backend, path, tie_tolerance, min_agreement, begin)
        begin("time")
        if measured.get("verified", True):
            exported = _load(request, backend, path)
            measured["latency_ms"] = measure_latency(exported, self.pixels)
            measured |= {"num_images": len(request.pixels), "images": "calibration" if images else "samples"}
        return measured


def _load(request: ExportRequest, backend: str, path: Path) -> ExportedModel:
    config, processor = request.model.config, request.processor
    return load_exported_model(path, config, request.task, backend, interface=request.interface, processor=processor)


def _write_records(output_dir: Path, file: str, *records: ExportRecord) -> None:
    """Replace the records of a file in `export.json`."""
    others = [each for each in read_export_records(output_dir / EXPORT_FILE) if each.file != file]
    write_export_records(output_dir / EXPORT_FILE, [*others, *records])


def _announce(output_dir: Path, record: ExportRecord, folder: Path) -> None:
    """Add the record of an exported model and the configurations of its model in `folder`, before its files.

    Records of other weights are dropped; those of the same file are kept until its files are replaced. As records hold
    hashes, a process that is killed at any point leaves files that are those of one record, or are refused. The output
    directory keeps the configurations of weights of its own.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    records = read_export_records(output_dir / EXPORT_FILE)
    kept = [other for other in records if other.weights == record.weights]
    write_export_records(output_dir / EXPORT_FILE, [*kept, record])
    for name in CONFIG_FILES:
        if (folder / name).is_file() and not (has_weights(output_dir) and (output_dir / name).exists()):
            content = (folder / name).read_bytes()
            write_atomically(output_dir / name, lambda file, content=content: file.write(content))


def export_file(request: ExportRequest, backend: str, path: Path) -> None:
    """Write a model as a file for one backend.

    Args:
        path: File to write, in an existing folder; OpenVINO's weights go next to it as .bin. Files take one image of
            the size of `request.pixels`; those of the interface "tensors" for ONNX and OpenVINO take any batch and
            image size.
    """
    with quiet():
        pkgutil.resolve_name(FORMATS[backend].write)(request, path)


def export_verified(
    request: ExportRequest,
    backend: str,
    path: Path,
    tie_tolerance: float = TIE_TOLERANCE,
    min_agreement: float = MIN_AGREEMENT,
    begin: Callable[[str], object] = lambda step: None,
) -> dict[str, Any]:
    """Write a file for one backend, compare it with the torch model, and return fields of the `ExportRecord`.

    Args:
        request: Its `pixels` are the images for the comparison.
        tie_tolerance: As for `compare`.
        min_agreement: As for `check_comparison`.
        begin: Called with the name of each step of `STEP_SECONDS` that begins.

    Raises:
        ValueError: If the exported model differs from the torch model.
    """
    begin("export")
    export_file(request, backend, path)
    begin("verify")
    if FORMATS[backend].runtime is None:
        return {"verified": False}
    exported, processor = _load(request, backend, path), request.processor
    assert processor is not None  # the caller's pixels come from it
    comparison = compare(request.model, exported, request.pixels, request.task, processor, tie_tolerance)
    name, float32 = f"{FORMATS[backend].title} in {request.dtype}", request.dtype == "float32"
    check_comparison(comparison, name, float32=float32, min_agreement=min_agreement)
    return comparison._asdict()


def _export_int8(
    request: ExportRequest,
    backend: str,
    path: Path,
    images: "CalibrationImages",
    max_drop: float,
    begin: Callable[[str], object],
) -> dict[str, Any]:
    """Write a file that is quantized on `request.pixels`, and return fields of its `ExportRecord`.

    Raises:
        ValueError: If the accuracy drops by more than `max_drop` percentage points.
    """
    from .quantization import check_drop, measure_drop  # imports datasets

    begin("export")
    write_int8, processor = FORMATS[backend].write_int8, request.processor
    assert write_int8 is not None  # checked by `check_backend`
    assert processor is not None
    with quiet():
        pkgutil.resolve_name(write_int8)(request, path, request.pixels)
    begin("verify")
    exported = _load(request, backend, path)
    drop = measure_drop(request.model, exported, request.task, processor, images)
    check_drop(drop, max_drop)
    comparison = compare(request.model, exported, request.pixels, request.task, processor)
    return {**comparison._asdict(), "drop": DropRecord(**drop._asdict())}
