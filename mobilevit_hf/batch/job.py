"""The description of a job in its output folder, by which a resumed job is compared, and its list of chunks."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import IO, Any

from ..io import parse_json
from .output import CHUNKS_FILE, JOB_FILE, OutputFolder
from .sources import Listing
from .types import Chunk, Job

VERSION = 1
# Half a minute on one core: what is lost when a worker is killed, and 2000 parts for a million images.
CHUNK_SIZE = 500
# Fields that may differ when a job is resumed: the predictions are the same, up to rounding on another device.
FREE_FIELDS = ("model", "output", "device", "threads")


@dataclass(frozen=True)
class ListingTotals:
    """Totals of the list of chunks.

    Attributes:
        chunks: Number of chunks.
        files: Number of files: images, Parquet files and shards.
        images: Number of images, None if the source has shards.
        notes: Lines about files that are not read.
    """

    chunks: int
    files: int
    images: int | None
    notes: list[str]


def describe_job(job: Job, sources: Sequence[str], chunk_size: int | None) -> dict[str, Any]:
    """Return what determines the content of the parts, as JSON values."""
    fields = {name: value for name, value in asdict(job).items() if name not in FREE_FIELDS}
    return {"version": VERSION, "source": list(sources), "model": job.model, "chunk_size": chunk_size, **fields}


def open_job(
    output: OutputFolder, job: Job, sources: Sequence[str], chunk_size: int | None, *, resume: bool
) -> ListingTotals:
    """List the chunks of a new job and write its description, or compare it with that of the job to resume.

    A resumed job has the same chunks, whatever has been added to the source.

    Raises:
        ValueError: If the output exists and is not to be resumed, the description differs, or a new job's source does
            not exist or has no images.
    """
    description, names = describe_job(job, sources, chunk_size), output.names()
    listing = Listing(sources, chunk_size or CHUNK_SIZE, output.location)
    if JOB_FILE not in names:
        if set(names) - {CHUNKS_FILE}:
            advice = "expected a job to resume" if resume else "expected a new or empty folder"
            raise ValueError(f"output: got {output.location} with other files, {advice}. Pass another path.")
        output.prepare()
        totals = _write_chunks(output, listing)
        recorded = description | {"chunk_size": listing.chunk_size, "listing": asdict(totals)}
        _write_json(output, JOB_FILE, recorded)
        return totals
    if not resume:
        raise ValueError(f"output: {output.location} exists. Continue it with --resume, or pass another path.")
    recorded = _read_json(output, JOB_FILE)
    _compare(recorded, description, output.location)
    output.prepare()
    totals = ListingTotals(**recorded["listing"])
    change = listing.count_files() - totals.files
    if change:
        text = f"{change} more" if change > 0 else f"{-change} fewer"
        note = f"The source has {text} files than when the job was started. This job reads those that it had then."
        return replace(totals, notes=[*totals.notes, note])
    return totals


def _compare(recorded: dict[str, Any], description: dict[str, Any], output: str) -> None:
    for name, value in description.items():
        option, got, expected = name, value, recorded.get(name)
        if name == "model" or got == expected or (name == "chunk_size" and got is None):
            continue
        if name == "model_hash":
            option, got, expected = (
                "model",
                f"{description['model']} with other weights or settings",
                recorded["model"],
            )
        raise ValueError(
            f"{option}: got {_format(got)}, expected {_format(expected)} as when the job in {output} was started. "
            "Use the same, or another output."
        )


def _format(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else "the default" if value is None else str(value)


def _write_chunks(output: OutputFolder, listing: Listing) -> ListingTotals:
    """Write the chunks of a source, one per line."""
    chunks, images = 0, 0

    def write(file: IO[bytes]) -> None:
        nonlocal chunks, images
        for chunk in listing.chunks():
            file.write(f"{json.dumps(asdict(chunk))}\n".encode())
            chunks += 1
            images = None if images is None or chunk.num_images is None else images + chunk.num_images

    output.write(CHUNKS_FILE, write)
    if not chunks:
        output.remove(CHUNKS_FILE)
        notes = "".join(f" {note}" for note in listing.notes)
        raise ValueError(f"source: got no images in {', '.join(listing.sources)}, expected some.{notes}")
    return ListingTotals(chunks, listing.num_files, images, listing.notes)


def read_chunks(output: OutputFolder) -> Iterator[Chunk]:
    """Yield the chunks of a listed job."""
    for line in output.read_lines(CHUNKS_FILE):
        values = json.loads(line)
        yield Chunk(**values | {"names": tuple(values["names"]), "row_groups": tuple(values["row_groups"])})


def _write_json(output: OutputFolder, name: str, values: dict[str, Any]) -> None:
    output.write(name, lambda file: file.write(f"{json.dumps(values, indent=2)}\n".encode()))


def _read_json(output: OutputFolder, name: str) -> dict[str, Any]:
    values = None
    with suppress(ValueError), output.open(name) as file:
        values = parse_json(file.read())
    if not isinstance(values, dict):
        raise ValueError(f"{output.location}/{name}: can't be read. Start the job in another folder.")
    return values
