"""Export a model to files for other runtimes, verify them, and record what was measured."""

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedModel

from ..environment import describe_hardware
from ..io import atomic_folder
from ..model_sources import has_weights, read_task, resolve_model
from ..records import EXPORT_FILE, ExportRecord, read_export_records, write_export_records
from ..tasks import EXPORTABLE_TASKS, TaskName
from . import cache
from .base import exported_bytes, replace_exported
from .formats import FORMATS, check_backend
from .openvino import convert_openvino, save_openvino
from .pytorch import load_model
from .runtime import load_exported_model
from .tracing import quiet
from .verify import TIE_TOLERANCE, Comparison, check_comparison, compare, measure_latency, verification_pixels

if TYPE_CHECKING:
    from .quantization import CalibrationImages

# What an app needs next to the exported file.
CONFIG_FILES = ("config.json", "preprocessor_config.json")


def export_model(
    model: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    backends: Iterable[str],
    *,
    dtype: str = "float32",
    quantization: str | None = None,
    calibration: str | None = None,
    max_drop: float = 1.0,
    log: Callable[[str], object] = print,
    progress: Callable[[ExportRecord], object] | None = None,
) -> list[ExportRecord]:
    """Export a model to one file per backend.

    Each file is compared with the torch model and kept only if its predictions agree; measurements are written to
    `export.json`. Core ML files are not run, so they are not verified.

    Args:
        model: Directory, built-in name or Hub id.
        output_dir: Directory to write; may be the model's own.
        backends: Keys of `FORMATS`: "onnx", "openvino", "executorch", "coreml".
        dtype: Compute dtype: "float32", "float16" or "bfloat16", as the backend supports.
        quantization: "int8" for a quantized file; requires `calibration`.
        calibration: Dataset or folder of images like those the model will see, for verification and quantization.
        max_drop: Largest accuracy drop by quantization, in percentage points.
        log: Called with one line of text for each unreadable calibration image.
        progress: Called with each record after its file is written.

    Returns:
        A record per backend.

    Raises:
        ValueError: If a backend does not support the request or is not installed, the model can't be loaded, or an
            exported file differs from the torch model. Files of earlier backends are kept.
        OSError: If a file can't be written.
    """
    if quantization and not calibration:
        raise ValueError(f"quantization: got {quantization} without images. Set calibration (--calibration DATA).")
    folder, backends = resolve_model(os.fspath(model)), list(dict.fromkeys(backends))
    task = read_task(os.fspath(model), folder, EXPORTABLE_TASKS).name
    for backend in backends:
        check_backend(backend, task, dtype, quantization)
    torch_model, _ = load_model(task, str(folder), {"trust_remote_code": False})
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    images = _load_images(calibration, task, processor, log) if calibration else None
    exporter = _Exporter(
        model=torch_model,
        task=task,
        processor=processor,
        dtype=dtype,
        pixels=verification_pixels(task, processor),
        images=images,
        folder=folder,
        output_dir=Path(output_dir),
    )
    records = []
    for backend in backends:
        records.append(exporter.export_int8(backend, max_drop) if quantization else exporter.export(backend))
        if progress:
            progress(records[-1])
    return records


def _load_images(
    source: str, task: TaskName, processor: BaseImageProcessor, log: Callable[[str], object]
) -> "CalibrationImages":
    # Datasets and evaluation are imported for calibration only.
    from .quantization import load_calibration_images

    images = load_calibration_images(source, task, processor)
    for problem in images.problems:
        log(f"{problem.name}: {problem.reason}")
    return images


def export_file(model: nn.Module, task: TaskName, backend: str, path: Path, pixels: Tensor, dtype: str) -> None:
    """Write a model as a file for one backend.

    Args:
        model: MobileViT model in float32 on the CPU; not modified.
        task: Its task.
        backend: Key of `FORMATS`.
        path: File to write, in an existing folder; OpenVINO's weights go next to it as .bin.
        pixels: (B, 3, H, W) output of the image processor. ExecuTorch and Core ML files take one image of this size,
            the others any batch and image size.
        dtype: Compute dtype.
    """
    with quiet():
        FORMATS[backend].write(model, task, path, pixels, dtype)


def export_verified(
    model: PreTrainedModel,
    task: TaskName,
    processor: BaseImageProcessor,
    backend: str,
    path: Path,
    pixels: Tensor,
    dtype: str,
    tie_tolerance: float = TIE_TOLERANCE,
) -> Comparison | None:
    """Write a model as a file for one backend and compare the two on `pixels`; None if the format can't be run.

    Raises:
        ValueError: If the exported model differs from the torch model.
    """
    export_file(model, task, backend, path, pixels, dtype)
    if FORMATS[backend].runtime is None:
        return None
    exported = load_exported_model(path, model.config, task, backend)
    comparison = compare(model, exported, pixels, task, processor, tie_tolerance)
    check_comparison(comparison, f"{FORMATS[backend].title} in {dtype}", float32=dtype == "float32")
    return comparison


@dataclass
class _Exporter:
    """What the files of one export share.

    Attributes:
        model: Torch model in float32.
        task: Its task.
        processor: Its image processor.
        dtype: Compute dtype.
        pixels: Images to verify on and to measure latency with.
        images: Calibration images.
        folder: Folder of the checkpoint.
        output_dir: Folder to write.
    """

    model: PreTrainedModel
    task: TaskName
    processor: BaseImageProcessor
    dtype: str
    pixels: Tensor
    images: "CalibrationImages | None"
    folder: Path
    output_dir: Path

    def export(self, backend: str) -> ExportRecord:
        """Write and verify the file of a backend."""
        with replace_exported(self.output_dir / FORMATS[backend].path(self.dtype, None)) as path:
            # A model is confident on real images: no ties.
            pixels, tie_tolerance = (self.images.calibration, 0.0) if self.images else (self.pixels, TIE_TOLERANCE)
            arguments = (self.model, self.task, self.processor, backend, path, pixels, self.dtype, tie_tolerance)
            comparison = export_verified(*arguments)
            if comparison is None:
                return self._record(path, backend, None, {"verified": False})
            return self._record(path, backend, None, comparison._asdict() | self._measure_latency(path, backend))

    def export_int8(self, backend: str, max_drop: float) -> ExportRecord:
        """Write the int8 file of a backend if its accuracy drop is within `max_drop` percentage points."""
        from .quantization import check_drop, measure_drop, quantize_openvino

        if self.images is None:
            raise ValueError("calibration: got None, expected images for int8. Pass a dataset or a folder of images.")
        calibration = self.images.calibration
        float_model = convert_openvino(self.model, self.task, self.pixels)
        quantized = quantize_openvino(float_model, (image.numpy() for image in calibration.split(1)))
        with replace_exported(self.output_dir / FORMATS[backend].path(self.dtype, "int8")) as path:
            save_openvino(quantized, path, self.dtype)
            exported = load_exported_model(path, self.model.config, self.task, backend)
            drop = measure_drop(self.model, exported, self.task, self.processor, self.images)
            check_drop(drop, max_drop)
            comparison = compare(self.model, exported, calibration, self.task, self.processor)
            measured = {**comparison._asdict(), "drop": drop._asdict(), **self._measure_latency(path, backend)}
            return self._record(path, backend, "int8", measured)

    def _measure_latency(self, path: Path, backend: str) -> dict[str, Any]:
        exported = load_exported_model(path, self.model.config, self.task, backend)
        return {"latency_ms": measure_latency(exported, self.pixels)}

    def _record(self, path: Path, backend: str, quantization: str | None, measured: dict[str, Any]) -> ExportRecord:
        record = ExportRecord(
            backend=backend,
            file=FORMATS[backend].path(self.dtype, quantization),
            dtype=self.dtype,
            quantization=quantization,
            bytes=exported_bytes(path),
            weights=cache.weights_hash(self.model),
            size=list(self.pixels.shape[2:]),
            versions=cache.package_versions(FORMATS[backend]),
            machine=describe_hardware(),
            **measured,
        )
        # A folder holds the exports of one model: records of other weights are dropped.
        others = read_export_records(self.output_dir / EXPORT_FILE)
        kept = [other for other in others if other.file != record.file and other.weights == record.weights]
        with atomic_folder(self.output_dir) as scratch:
            write_export_records(scratch / EXPORT_FILE, [*kept, record])
            for name in CONFIG_FILES:
                is_model_folder = has_weights(self.output_dir) and (self.output_dir / name).exists()
                if (self.folder / name).is_file() and not is_model_folder:
                    shutil.copyfile(self.folder / name, scratch / name)
        return record
