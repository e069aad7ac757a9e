"""Types of batch inference: jobs, chunks of images, and their results. All are small and can be pickled."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from ..tasks import TaskName

OutputFormat = Literal["parquet", "jsonl"]
OUTPUT_FORMATS: tuple[OutputFormat, ...] = ("parquet", "jsonl")


@dataclass(frozen=True)
class Chunk:
    """Images that one worker reads and whose predictions are one part of the output.

    Attributes:
        index: Number of the part file, 0, 1, ...
        kind: "files" (image files), "parquet" (rows of a Parquet file) or "webdataset" (a tar shard).
        location: Folder or URL of the folder of the files; or path or URL of the Parquet file or shard.
        name: Name of the Parquet file or shard in its source, the start of the ids of its images.
        names: Paths of the image files, relative to `location`; or http(s) URLs.
        row_groups: First and last + 1 row group of a Parquet file.
        first_row: Row of the Parquet file with which the first row group starts.
        num_images: Number of images; None for a shard, which has no index.
    """

    index: int
    kind: Literal["files", "parquet", "webdataset"]
    location: str
    name: str = ""
    names: tuple[str, ...] = ()
    row_groups: tuple[int, int] = (0, 0)
    first_row: int = 0
    num_images: int | None = None


@dataclass(frozen=True)
class Job:
    """What a worker needs to process any chunk.

    Attributes:
        model: Directory, built-in name or Hub id. A worker on another machine resolves it there.
        model_hash: Hash of the model's files, which a worker compares with that of the model it finds.
        task: Task of the model.
        output: Folder or fsspec URL of the output, which all workers can write to.
        output_format: Format of the parts.
        embeddings: Whether the parts have a column of the encoder's pooled output.
        top_k: Number of labels per image; classification only.
        threshold: Minimum score of a box; detection only.
        backend, dtype, quantization: See `mobilevit_hf.pipeline`.
        device: Device of torch, None for exported models; "auto" is resolved in the worker.
        threads: CPU threads of a worker, None for torch's number of threads.
    """

    model: str
    model_hash: str
    task: TaskName
    output: str
    output_format: OutputFormat
    embeddings: bool = False
    top_k: int | None = None
    threshold: float | None = None
    backend: str = "torch"
    dtype: str | None = None
    quantization: str | None = None
    device: str | None = None
    threads: int | None = None


@dataclass(frozen=True)
class ChunkResult:
    """Result of a chunk whose part is written.

    Attributes:
        index: Index of the chunk.
        images: Number of rows of the part.
        unreadable: Number of rows with an error.
        examples: Names and reasons of the first unreadable images.
    """

    index: int
    images: int
    unreadable: int
    examples: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class BatchProgress:
    """Progress of a job, those parts included that an earlier run has written.

    Attributes:
        images: Number of images done.
        unreadable: Number of images among them that could not be read.
        total_images: Number of all images; None if the source has shards.
        chunks: Number of chunks done.
        total_chunks: Number of all chunks.
        images_per_second: Mean of this run.
        examples: Names and reasons of images that could not be read, in the last chunk.
    """

    images: int
    unreadable: int
    total_images: int | None
    chunks: int
    total_chunks: int
    images_per_second: float
    examples: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class BatchSummary:
    """Summary of a finished job.

    Attributes:
        output: Folder or URL of the output.
        images: Number of rows of all parts.
        unreadable: Number of rows with an error.
        parts: Number of part files.
        resumed_parts: Number of parts that an earlier run had written.
        seconds: Duration of this run.
        images_per_second: Mean of this run.
        notes: Lines about the source, for example on files that were added since the job was started.
    """

    output: str
    images: int
    unreadable: int
    parts: int
    resumed_parts: int
    seconds: float
    images_per_second: float
    notes: tuple[str, ...] = ()


class Executor(Protocol):
    """Runs `worker.process_chunk(job, chunk)` for each chunk, somewhere."""

    def run(self, chunks: Iterable[Chunk], job: Job) -> Iterator[ChunkResult]:
        """Yield the results of chunks in any order, each as soon as its part is written.

        `chunks` is drawn lazily, a few ahead of the workers, so that memory is bounded. A chunk may be processed again
        after a worker died: its part is replaced by the same content. Closing the generator stops the workers.

        Raises:
            ValueError, OSError: If a chunk can't be processed. The message is one line.
        """
        ...
