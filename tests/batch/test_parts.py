import gc
import io
import json
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from mobilevit_hf.batch.parts import count_rows, make_schema, write_part

MASK = {"size": [2, 3], "counts": "abc"}
PREDICTIONS = {
    "image-classification": [{"label": "cat", "score": 0.1 + 0.2}],
    "object-detection": [{"score": 0.7, "label": "cat", "box": {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}}],
    "image-segmentation": [{"label": "cat", "fraction": 0.5, "mask": MASK}],
}


def write(output_format, task="image-classification", embeddings=False, rows=600):
    row = {"image": "a", "width": 3, "height": 2, "predictions": PREDICTIONS[task], "error": None}
    if embeddings:
        row["embedding"] = np.arange(3, dtype=np.float32) / 7
    file = io.BytesIO()
    bad = [{"image": f"{i}", "error": "bad"} for i in range(2)]
    writer = write_part(file, output_format, make_schema(task, embeddings=embeddings), [row] * (rows - 2) + bad)
    file.seek(0)
    return file, writer


def read(file, output_format):
    if output_format == "parquet":
        return pq.read_table(file).to_pylist()
    return [json.loads(line) for line in file]


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
@pytest.mark.parametrize("task", PREDICTIONS)
def test_rows_are_read_as_they_were_written(output_format, task):
    file, writer = write(output_format, task)
    rows = read(file, output_format)
    assert (len(rows), writer.rows, writer.unreadable) == (600, 600, 2)
    assert rows[0] == {"image": "a", "width": 3, "height": 2, "predictions": PREDICTIONS[task], "error": None}
    nothing = dict.fromkeys(("width", "height", "predictions"))
    assert rows[-1] == {"image": "1", **nothing, "error": "bad"}


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_embeddings_are_float32(output_format):
    rows = read(write(output_format, embeddings=True)[0], output_format)
    expected = (np.arange(3, dtype=np.float32) / 7).tolist()
    assert rows[0]["embedding"] == expected
    assert rows[-1]["embedding"] is None


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_rows_and_errors_of_a_part_are_counted(output_format):
    assert count_rows(write(output_format)[0], output_format) == (600, 2)


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_damaged_part_is_an_error(output_format):
    data = write(output_format)[0].getvalue()
    with pytest.raises(ValueError):
        count_rows(io.BytesIO(data[:-5]), output_format)


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_interrupted_part_is_not_written_to_after_its_file_is_closed(output_format, tmp_path, monkeypatch):
    errors = []
    monkeypatch.setattr(sys, "unraisablehook", errors.append)  # of destructors

    def interrupted_rows():
        yield {"image": "0.png", "error": None}
        raise KeyboardInterrupt

    schema = make_schema("image-classification", embeddings=False)
    with pytest.raises(KeyboardInterrupt), (tmp_path / "part").open("wb") as file:
        write_part(file, output_format, schema, interrupted_rows())
    gc.collect()
    assert errors == []
