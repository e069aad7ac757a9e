"""Parts of the output: one Parquet or JSON lines file per chunk, with a row for each image.

Columns: `image` (name in the source), `width` and `height` (pixels of the upright image), `predictions` (as
`mobilevit predict --json` prints them; masks as COCO RLE), `error` (reason why the image could not be read, or null)
and, if requested, `embedding` (float32). Width, height, predictions and embedding of an image with an error are null.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import IO, Any

import pyarrow as pa
from pyarrow import parquet

from ..tasks import TaskName
from .types import OutputFormat

ROWS_PER_GROUP = 512
UNREADABLE = b"mobilevit.unreadable"  # key in a Parquet file's metadata: number of rows with an error

Row = dict[str, Any]

BOX = pa.struct([(edge, pa.int64()) for edge in ("xmin", "ymin", "xmax", "ymax")])
RLE = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
PREDICTIONS: dict[TaskName, pa.DataType] = {
    "image-classification": pa.struct([("label", pa.string()), ("score", pa.float64())]),
    "object-detection": pa.struct([("score", pa.float64()), ("label", pa.string()), ("box", BOX)]),
    "image-segmentation": pa.struct([("label", pa.string()), ("fraction", pa.float64()), ("mask", RLE)]),
}


def make_schema(task: TaskName, *, embeddings: bool) -> pa.Schema:
    """Return the columns of a part."""
    columns: list[tuple[str, pa.DataType]] = [
        ("image", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("predictions", pa.list_(PREDICTIONS[task])),
        ("error", pa.string()),
    ]
    return pa.schema([*columns, ("embedding", pa.list_(pa.float32()))] if embeddings else columns)


class PartWriter(ABC):
    """Writes rows to an open file.

    Args:
        file: The file.
        schema: The columns.
    """

    def __init__(self, file: IO[bytes], schema: pa.Schema) -> None:
        self._file, self._schema = file, schema
        self.rows = self.unreadable = 0

    def write(self, row: Row) -> None:
        """Write a row."""
        self.rows += 1
        self.unreadable += row["error"] is not None
        self._write({name: row.get(name) for name in self._schema.names})

    @abstractmethod
    def _write(self, row: Row) -> None:
        """Write a row with all columns."""

    @abstractmethod
    def finish(self) -> None:
        """Write what is left; the file stays open."""

    @abstractmethod
    def abandon(self) -> None:
        """Write nothing more, after an error."""


class ParquetPartWriter(PartWriter):
    """Writer of a Parquet file."""

    def __init__(self, file: IO[bytes], schema: pa.Schema) -> None:
        super().__init__(file, schema)
        self._writer, self._pending = parquet.ParquetWriter(file, schema), []

    def _write(self, row: Row) -> None:
        self._pending.append(row)
        if len(self._pending) == ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._pending, self._schema))
        self._pending = []

    def finish(self) -> None:
        """Write the last rows and the footer."""
        self._flush()
        self._writer.add_key_value_metadata({UNREADABLE: str(self.unreadable).encode()})
        self._writer.close()

    def abandon(self) -> None:
        """Write no footer: otherwise the destructor does, to a file that is closed by then."""
        self._writer.is_open = False


class JsonLinesPartWriter(PartWriter):
    """Writer of JSON lines."""

    def _write(self, row: Row) -> None:
        if row.get("embedding") is not None:
            row["embedding"] = row["embedding"].tolist()
        self._file.write(f"{json.dumps(row, allow_nan=False)}\n".encode())

    def finish(self) -> None:
        """Do nothing: each line is written at once."""

    def abandon(self) -> None:
        """Do nothing: no line is pending."""


PART_WRITERS: dict[OutputFormat, type[PartWriter]] = {"parquet": ParquetPartWriter, "jsonl": JsonLinesPartWriter}


def write_part(file: IO[bytes], output_format: OutputFormat, schema: pa.Schema, rows: Iterable[Row]) -> PartWriter:
    """Write rows to an open file; return the finished writer, which has counted them."""
    writer = PART_WRITERS[output_format](file, schema)
    try:
        for row in rows:
            writer.write(row)
        writer.finish()
    except BaseException:
        writer.abandon()
        raise
    return writer


def count_rows(file: IO[bytes], output_format: OutputFormat) -> tuple[int, int]:
    """Return the number of rows of a part, and how many have an error.

    Raises:
        ValueError: If it is damaged.
    """
    if output_format == "parquet":
        metadata = parquet.read_metadata(file)
        return metadata.num_rows, int((metadata.metadata or {}).get(UNREADABLE, b"0"))
    errors: Sequence[bool] = [json.loads(line)["error"] is not None for line in file]
    return len(errors), sum(errors)
