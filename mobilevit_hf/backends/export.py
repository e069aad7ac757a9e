"""Export a model to files for other runtimes, verify them, and record what was measured."""

import os
import pkgutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import BaseImageProcessor, PreTrainedModel

from ..environment import describe_hardware
from ..io import write_atomically
from ..model_sources import has_weights, load_image_processor, read_task, resolve_model
from ..records import EXPORT_FILE, ExportRecord, HardwareRecord, read_export_records, write_export_records
from ..tasks import EXPORTABLE_TASKS, TaskName
from . import cache
from .files import exported_bytes, hash_files, replace_exported
from .formats import FORMATS, QUANTIZATION_PACKAGES, check_backend, check_packages
from .pytorch import load_model
from .runtime import load_exported_model
from .tracing import quiet
from .verify import TIE_TOLERANCE, check_comparison, compare, measure_latency, verification_pixels

# What an app needs next to the exported file.
CONFIG_FILES = ("config.json", "preprocessor_config.json")


def export_model(
    model: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    backends: str | Iterable[str],
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
        backends: One or more keys of `FORMATS`: "onnx", "openvino", "executorch", "coreml".
        dtype: Compute dtype: "float32", "float16" or "bfloat16", as the backend supports.
        quantization: "int8" for a quantized file; requires `calibration`.
        calibration: Dataset or folder of images like those the model will see, for verification and quantization.
        max_drop: Largest accuracy drop by quantization, in percentage points.
        log: Called with one line of text for each unreadable calibration image.
        progress: Called with each record after its file is written.

    Raises:
        ValueError: If a backend does not support the request or is not installed, the model can't be loaded, or an
            exported file differs from the torch model. Files of earlier backends are kept.
        OSError: If a file can't be written.
    """
    if quantization and not calibration:
        raise ValueError(
            f"quantization: got {quantization!r} without images, expected some for calibration. Set calibration."
        )
    backends = [backends] if isinstance(backends, str) else list(dict.fromkeys(backends))
    folder, output_dir = resolve_model(os.fspath(model)), Path(output_dir)
    task = read_task(os.fspath(model), folder, EXPORTABLE_TASKS).name
    for backend in backends:
        check_backend(backend, task, dtype, quantization)
    if quantization:
        check_packages(f"quantization: {quantization!r}", QUANTIZATION_PACKAGES)
    torch_model, _ = load_model(task, str(folder), {"trust_remote_code": False})
    processor = load_image_processor(folder, trust_remote_code=False)
    pixels, images = verification_pixels(task, processor), None
    if calibration:
        from .quantization import export_int8, load_calibration_images  # imports datasets

        images = load_calibration_images(calibration, task, processor)
        for problem in images.problems:
            log(f"{problem.name}: {problem.reason}")
    weights, records = cache.weights_hash(torch_model), []
    for backend in backends:
        file = FORMATS[backend].path(dtype, quantization)
        with replace_exported(output_dir / file) as path:
            if quantization and images:
                measured = export_int8(torch_model, task, processor, path, dtype, images, max_drop)
            else:
                # A model is confident on real images: no ties.
                verification, tie_tolerance = (images.calibration, 0.0) if images else (pixels, TIE_TOLERANCE)
                arguments = (torch_model, task, processor, backend, path, verification, dtype, tie_tolerance)
                measured = export_verified(*arguments)
            if measured.get("verified", True):
                exported = load_exported_model(path, torch_model.config, task, backend)
                measured["latency_ms"] = measure_latency(exported, pixels)
            record = ExportRecord(
                backend=backend,
                file=file,
                dtype=dtype,
                quantization=quantization,
                bytes=exported_bytes(path),
                weights=weights,
                files=hash_files(path),
                size=list(pixels.shape[2:]),
                versions=cache.package_versions(FORMATS[backend]),
                machine=HardwareRecord(**describe_hardware()),
                **measured,
            )
            _announce(output_dir, record, folder)
        others = [each for each in read_export_records(output_dir / EXPORT_FILE) if each.file != file]
        write_export_records(output_dir / EXPORT_FILE, [*others, record])
        records.append(record)
        if progress:
            progress(record)
    return records


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


def export_file(model: nn.Module, task: TaskName, backend: str, path: Path, pixels: Tensor, dtype: str) -> None:
    """Write a model as a file for one backend.

    Args:
        model: MobileViT model in float32 on the CPU; not modified.
        path: File to write, in an existing folder; OpenVINO's weights go next to it as .bin.
        pixels: (B, 3, H, W) output of the image processor. ExecuTorch and Core ML files take one image of this size,
            the others any batch and image size.
    """
    with quiet():
        pkgutil.resolve_name(FORMATS[backend].write)(model, task, path, pixels, dtype)


def export_verified(
    model: PreTrainedModel,
    task: TaskName,
    processor: BaseImageProcessor,
    backend: str,
    path: Path,
    pixels: Tensor,
    dtype: str,
    tie_tolerance: float = TIE_TOLERANCE,
) -> dict[str, Any]:
    """Write a model as a file for one backend, compare the two on `pixels`, and return fields of the `ExportRecord`.

    Raises:
        ValueError: If the exported model differs from the torch model.
    """
    export_file(model, task, backend, path, pixels, dtype)
    if FORMATS[backend].runtime is None:
        return {"verified": False}
    exported = load_exported_model(path, model.config, task, backend)
    comparison = compare(model, exported, pixels, task, processor, tie_tolerance)
    check_comparison(comparison, f"{FORMATS[backend].title} in {dtype}", float32=dtype == "float32")
    return comparison._asdict()
