"""The column of images of a Parquet file."""

import json
from contextlib import suppress
from typing import Any

import pyarrow as pa

# Columns of paths, in the order of preference.
PATH_COLUMNS = ("image", "path", "file_name", "filename", "file", "image_path", "url", "image_url")


def find_image_column(schema: "pa.Schema") -> str | None:
    """Return the name of the column of images of a Parquet file, None if there is none.

    In this order: an `Image` feature of the `datasets` library; structs with `bytes` or `path`; bytes; and paths in
    one of `PATH_COLUMNS`. Among several, one with a name in `PATH_COLUMNS`, or the first.
    """
    features: dict[str, Any] = {}
    with suppress(ValueError, KeyError, TypeError):
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    declared = [
        name for name, feature in features.items() if isinstance(feature, dict) and feature.get("_type") == "Image"
    ]
    structs, binary, paths = [], [], []
    for field in schema:
        kind = field.type
        if pa.types.is_struct(kind) and {"bytes", "path"} & {kind.field(i).name for i in range(kind.num_fields)}:
            structs.append(field.name)
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            binary.append(field.name)
        elif (pa.types.is_string(kind) or pa.types.is_large_string(kind)) and field.name in PATH_COLUMNS:
            paths.append(field.name)
    for candidates in (declared, structs, binary, paths):
        if candidates := [name for name in candidates if name in schema.names]:
            return next((name for name in PATH_COLUMNS if name in candidates), candidates[0])
    return None
