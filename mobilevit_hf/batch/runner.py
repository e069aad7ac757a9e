"""Run a batch job: list the source, predict what is missing, summarize."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from ..backends.formats import AUTO, BACKENDS, check_backend
from ..data.image_formats import is_url
from ..environment import available_devices
from ..model_sources import builtin_models, read_config, recommended_threshold, resolve_model
from ..redaction import redact
from ..tasks import EXPORTABLE_TASKS, TaskName, find_task
from .executors import ProcessExecutor, SerialExecutor
from .filesystems import is_remote, local_path
from .job import ListingTotals, open_job, read_chunks
from .output import SUCCESS_FILE, SUMMARY_FILE, OutputFolder, find_parts, part_name
from .parts import count_rows
from .types import OUTPUT_FORMATS, BatchProgress, BatchSummary, Executor, Job, OutputFormat
from .worker import hash_model

DEFAULT_TOP_K = 5
TASK_OPTIONS: dict[str, TaskName] = {"top_k": "image-classification", "threshold": "object-detection"}

Source = str | os.PathLike[str]


def predict_dataset(
    source: Source | Sequence[Source],
    output: Source,
    model: Source,
    *,
    workers: int | None = None,
    ray: str | None = None,
    output_format: OutputFormat = "parquet",
    embeddings: bool = False,
    chunk_size: int | None = None,
    resume: bool = False,
    backend: str = "torch",
    dtype: str | None = None,
    quantization: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    top_k: int | None = None,
    threshold: float | None = None,
    on_progress: Callable[[BatchProgress], None] | None = None,
) -> BatchSummary:
    """Predict all images of a source of any size and write the predictions to a folder.

    The source is listed once and split into chunks. The predictions of a chunk are one part of the output, which
    appears when it is complete: a job that was killed at any time continues with the missing parts, and no row is lost
    or written twice. Rows have the predictions of `mobilevit predict --json`; see `parts` for the columns. An image
    that can't be read is a row with the reason in `error`.

    With several workers, call this under `if __name__ == "__main__":`, as all programs with processes.

    Args:
        source: Folder, image file, glob pattern, Parquet file, WebDataset shard (.tar) or URL, or several of them. A
            URL is one of fsspec, such as "hf://datasets/user/name", "s3://bucket/folder" or "gs://bucket/folder"; the
            credentials are those of the environment. Of a folder, all of these files below it are read.
        output: Folder, or URL of one in an object store.
        model: Directory, built-in name or Hub id.
        workers: Number of processes, each with its own model; None: one, or with `ray` as many as the cluster has
            room for.
        ray: Run on a Ray cluster (extra `ray`): its address, "auto" for one that runs on this machine, or "local" for
            a new one.
        output_format: "parquet" or "jsonl".
        embeddings: Also write the pooled output of the encoder, (C,) float32; a MobileViT with `backend="torch"` only.
        chunk_size: Maximum number of images per chunk; see `sources.Listing`. Default: 500, or that of the job to
            resume.
        resume: Continue an existing output with the same model and options, which is an error otherwise.
        backend, dtype, quantization: See `mobilevit_hf.pipeline`.
        device: "auto", "cpu", "cuda" or "mps"; for the torch backend.
        threads: CPU threads per worker. Default: an equal number for each worker.
        top_k: Classification: number of labels per image. Default: 5.
        threshold: Detection: minimum score of a box, 0..1. Default: recommended by the model.
        on_progress: Called after each chunk.

    Raises:
        ValueError: If an argument is invalid, a source does not exist or has no images, or the output exists.
        OSError: If the source can't be read or the output can't be written.
    """
    for name, value in {"chunk_size": chunk_size, "workers": workers, "threads": threads}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1.")
    if output_format not in OUTPUT_FORMATS:
        raise ValueError(f"output_format: got {output_format!r}, expected one of {', '.join(OUTPUT_FORMATS)}.")
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(BACKENDS)}.")
    if quantization and backend == "torch":
        raise ValueError(f"quantization: got {quantization!r} for torch, expected None. Use openvino, onnx or litert.")
    if embeddings and backend != "torch":
        raise ValueError(f"embeddings: got True for {backend}, expected False. Use the torch backend.")
    sources = [os.fspath(item) for item in ([source] if isinstance(source, str | os.PathLike) else source)]
    executor = make_executor(workers, ray)
    folder = OutputFolder(_absolute(os.fspath(output)))
    job = Job(
        output=folder.location,
        output_format=output_format,
        embeddings=embeddings,
        backend=backend,
        dtype=dtype,
        quantization=quantization,
        device=device,
        threads=threads,
        **_model_fields(os.fspath(model), backend, top_k, threshold),
    )
    if ray is None:  # nodes of a cluster may have other devices and packages
        _check_runtime(job)
    if quantization:
        from ..backends.loader import check_quantized

        model_folder = resolve_model(job.model, folder=backend)
        precision = "float32" if dtype in (None, AUTO) else dtype
        check_quantized(model_folder, job.task, backend, precision, quantization)
    totals = open_job(folder, job, [_absolute(item) for item in sources], chunk_size, resume=resume)
    return _run(executor, folder, job, totals, on_progress)


def make_executor(workers: int | None, ray: str | None) -> Executor:
    """Return what runs the chunks: a Ray cluster, several processes, or this process."""
    if ray is not None:
        from .ray_executor import RayExecutor

        return RayExecutor(ray, workers)
    return SerialExecutor() if workers in (None, 1) else ProcessExecutor(cast("int", workers))


def _model_fields(model: str, backend: str, top_k: int | None, threshold: float | None) -> dict[str, Any]:
    """Return the fields of a job that depend on the model and its task."""
    folder = resolve_model(model, folder=None if backend == "torch" else backend)
    config = read_config(folder, model, trust_remote_code=False)
    task = find_task(config, model, EXPORTABLE_TASKS).name
    for name, value in {"top_k": top_k, "threshold": threshold}.items():
        if value is not None and TASK_OPTIONS[name] != task:
            raise ValueError(f"{name}: not for {task}, the task of {model}. Leave it out, or pass another model.")
    if task == "image-classification" and top_k is None:
        top_k = DEFAULT_TOP_K
    if task == "object-detection" and threshold is None:
        threshold = recommended_threshold(config)
    model = model if model in builtin_models() or not Path(model).is_dir() else str(Path(model).resolve())
    return {"model": model, "model_hash": hash_model(folder), "task": task, "top_k": top_k, "threshold": threshold}


def _check_runtime(job: Job) -> None:
    """Check that this machine has the device or the packages that the workers of a job need."""
    devices = ["auto", *available_devices()] if job.backend == "torch" else ["auto", "cpu"]
    if job.device not in devices:
        raise ValueError(f"device: got {job.device} for {job.backend}, expected {' or '.join(devices)}. Leave it out.")
    if job.backend != "torch":
        check_backend(job.backend, job.task, job.dtype or "float32", job.quantization, exports=False)


def _run(
    executor: Executor,
    output: OutputFolder,
    job: Job,
    totals: ListingTotals,
    on_progress: Callable[[BatchProgress], None] | None,
) -> BatchSummary:
    """Predict the chunks without a part, and write the summary."""
    names = output.names()
    finished = find_parts(names)
    images, unreadable = _count_finished(output, job, finished)
    earlier, start = images, time.monotonic()

    def speed() -> float:
        return (images - earlier) / max(time.monotonic() - start, 1e-9)

    def report(done: int, examples: tuple[tuple[str, str], ...] = ()) -> None:
        if on_progress:
            on_progress(BatchProgress(images, unreadable, totals.images, done, totals.chunks, speed(), examples))

    report(len(finished))
    pending = (chunk for chunk in read_chunks(output) if chunk.index not in finished)
    for done, result in enumerate(executor.run(pending, job), start=len(finished) + 1):
        images, unreadable = images + result.images, unreadable + result.unreadable
        report(done, result.examples)
    summary = BatchSummary(
        output=output.location,
        images=images,
        unreadable=unreadable,
        parts=totals.chunks,
        resumed_parts=len(finished),
        seconds=time.monotonic() - start,
        images_per_second=speed(),
        notes=tuple(totals.notes),
    )
    if SUCCESS_FILE not in names:
        text = json.dumps(asdict(summary) | {"output": redact(output.location)}, indent=2)
        output.write(SUMMARY_FILE, lambda file: file.write(f"{text}\n".encode()))
        output.write(SUCCESS_FILE, lambda file: None)
    return summary


def _count_finished(output: OutputFolder, job: Job, finished: set[int]) -> tuple[int, int]:
    """Return the number of rows of the finished parts, and how many have an error."""
    images = unreadable = 0
    for index in sorted(finished):
        name = part_name(index, job.output_format)
        try:
            with output.open(name) as file:
                rows, errors = count_rows(file, job.output_format)
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{output.location}/{name}: can't be read ({error}). Remove it to write it again."
            ) from error
        images, unreadable = images + rows, unreadable + errors
    return images, unreadable


def _absolute(path: str) -> str:
    """Return an absolute path, or a URL unchanged: workers may have another working directory."""
    return path if is_url(path) or is_remote(path) else os.path.abspath(local_path(path))  # noqa: PTH100
