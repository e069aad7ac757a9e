"""What a worker does with a chunk: read its images, predict, and write the part."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from PIL import Image
from transformers import Pipeline

from ..allocator import tune_allocator
from ..data.images import UnreadableImageError, load_first_frame
from ..data.segments import to_json
from ..environment import available_devices
from ..model_sources import IMAGE_PROCESSOR_FILE, resolve_model
from ..pipelines import pipeline
from ..records import EXPORT_FILE
from ..redaction import redact_message
from ..threads import limit_workers
from .filesystems import display_name
from .output import OutputFolder, part_name
from .parts import Row, make_schema, write_part
from .prediction import BATCH_SIZE, check_embeddings, predict_images
from .reading import SourceImage, read_chunk
from .types import Chunk, ChunkResult, Job

GPU_BATCH_SIZE = 64
MAX_EXAMPLES = 5  # unreadable images that a result names
# Of a model directory: what determines the predictions. The hash of an exported file is in `export.json`.
MODEL_FILES = ("config.json", IMAGE_PROCESSOR_FILE, EXPORT_FILE, "*.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Predictor:
    """A pipeline with the arguments of its calls."""

    pipeline: Pipeline
    arguments: dict[str, Any]
    batch_size: int


def process_chunk(job: Job, chunk: Chunk) -> ChunkResult:
    """Predict the images of a chunk and write its part, whole or not at all.

    The first call in a process loads the model, which is kept for later calls with the same job.

    Raises:
        ValueError, OSError: If the model is missing or differs from that of the job, the source can't be read, or the
            part can't be written. An image that can't be decoded is a row with the reason instead.
    """
    predictor = load_predictor(job)
    examples: list[tuple[str, str]] = []
    counts = [0, 0]

    def write(file: IO[bytes]) -> None:
        rows = _predict_rows(predictor, job, chunk, examples)
        part = write_part(file, job.output_format, make_schema(job.task, embeddings=job.embeddings), rows)
        counts[:] = part.rows, part.unreadable

    OutputFolder(job.output).write(part_name(chunk.index, job.output_format), write)
    return ChunkResult(chunk.index, *counts, examples=tuple(examples))


@lru_cache(maxsize=1)
def load_predictor(job: Job) -> Predictor:
    """Return the pipeline of a job, loaded once per process. Code in a checkpoint is never executed.

    Raises:
        ValueError, OSError: If the model is missing, differs from that of the job, or can't be loaded.
    """
    folder = resolve_model(job.model, folder=None if job.backend == "torch" else job.backend)
    if hash_model(folder) != job.model_hash:
        raise ValueError(f"{job.model}: got other files than when the job was started, expected the same model.")
    if job.threads:
        limit_workers(job.threads)
    tune_allocator()
    options = {"dtype": job.dtype, "quantization": job.quantization, "threads": job.threads}
    arguments: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    device = "cpu"
    if job.backend == "torch":
        device = available_devices()[-1] if job.device in (None, "auto") else job.device
        arguments["device"] = device
    predictor = pipeline(job.task, str(folder), backend=job.backend, trust_remote_code=False, **arguments)
    if job.embeddings:
        check_embeddings(predictor)
    call = {"top_k": job.top_k, "threshold": job.threshold}
    call_arguments = {key: value for key, value in call.items() if value is not None}
    return Predictor(predictor, call_arguments, BATCH_SIZE if device == "cpu" else GPU_BATCH_SIZE)


def hash_model(folder: Path) -> str:
    """Return the SHA-256 hash of the files in a model directory that determine its predictions; 1 ms per MB."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            digest.update(f"{path.name}\n".encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _predict_rows(predictor: Predictor, job: Job, chunk: Chunk, examples: list[tuple[str, str]]) -> Iterator[Row]:
    """Yield the rows of a part; the first images that could not be read are added to `examples`."""

    def load(image: SourceImage) -> tuple[Image.Image, tuple[int, int]]:
        pixels, _ = load_first_frame(image.read())
        return pixels, pixels.size

    predictions = predict_images(
        predictor.pipeline,
        read_chunk(chunk),
        load,
        predictor.arguments,
        pad=True,
        batch_size=predictor.batch_size,
        embeddings=job.embeddings,
    )
    for prediction in predictions:
        row: Row = {"image": prediction.item.name, "error": None}
        if isinstance(prediction.loaded, UnreadableImageError):
            row["error"] = display_name(redact_message(str(prediction.loaded)))
            if len(examples) < MAX_EXAMPLES:
                examples.append((row["image"], row["error"]))
        else:
            row["width"], row["height"] = prediction.loaded
            row["predictions"] = to_json(prediction.predictions)
            row["embedding"] = prediction.embedding
        yield row
