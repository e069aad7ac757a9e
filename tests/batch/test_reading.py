import gzip
import io
import tarfile
from dataclasses import replace

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mobilevit_hf.batch.image_columns import find_image_column
from mobilevit_hf.batch.reading import read_chunk
from mobilevit_hf.batch.sources import Listing
from mobilevit_hf.data.images import UnreadableImageError


def encode(number):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def read_all(source):
    """Return the content of each image by name, or the reason why there is none."""
    images = {}
    for chunk in Listing([str(source)], 4, "/nowhere").chunks():
        for image in read_chunk(chunk):
            assert image.name not in images
            try:
                content = image.read()
                images[image.name] = content if isinstance(content, bytes) else content.read_bytes()
            except UnreadableImageError as error:
                images[image.name] = str(error)
    return images


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_files_are_read_by_their_path(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.png").write_bytes(encode(1))
    assert read_all(tmp_path) == {"x/a.png": encode(1)}


def test_rows_written_by_datasets_have_their_number(tmp_path):
    rows = datasets.Dataset.from_dict({"n": [*range(7)], "image": [encode(i) for i in range(7)]})
    rows.cast_column("image", datasets.Image()).to_parquet(tmp_path / "a.parquet", batch_size=2)
    assert read_all(tmp_path) == {f"a.parquet#{i}": encode(i) for i in range(7)}


def test_rows_with_bytes_or_paths_and_without_both(tmp_path):
    (tmp_path / "p.png").write_bytes(encode(3))
    values = [
        {"bytes": encode(1), "path": "1.png"},
        {"bytes": None, "path": "p.png"},
        None,
        {"bytes": b"", "path": "q.svg"},
    ]
    pq.write_table(pa.table({"photo": values}), tmp_path / "a.parquet")
    images = read_all(tmp_path / "a.parquet")
    assert images["a.parquet#0"] == encode(1)
    assert images["a.parquet#1"] == encode(3)
    assert images["a.parquet#2"] == "no image in this row"
    assert "vector graphics" in images["a.parquet#3"]


@pytest.mark.parametrize("column", [[encode(0), encode(1)], ["0.png", "1.png"]])
def test_columns_of_bytes_and_of_paths(tmp_path, column):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(encode(i))
    pq.write_table(pa.table({"file_name": column}), tmp_path / "a.parquet")
    assert read_all(tmp_path / "a.parquet") == {f"a.parquet#{i}": encode(i) for i in range(2)}


def test_image_column_is_that_of_the_image_and_not_of_the_mask():
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert find_image_column(pa.schema([("mask", image), ("image", image), ("raw", pa.binary())])) == "image"
    assert find_image_column(pa.schema([("raw", pa.binary()), ("path", pa.string())])) == "raw"
    assert find_image_column(pa.schema([("text", pa.string()), ("label", pa.int64())])) is None


@pytest.mark.parametrize("path", ["../secret.png", "{}/secret.png", "local://{}/secret.png", "zip://a::{}/x.zip"])
def test_row_names_no_file_outside_of_the_folder(tmp_path, path):
    (tmp_path / "secret.png").write_bytes(encode(1))
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.table({"path": [path.format(tmp_path)]}), tmp_path / "rows" / "a.parquet")
    (reason,) = read_all(tmp_path / "rows").values()
    assert "is outside of the Parquet file's folder" in reason


def test_row_of_a_bucket_names_no_local_file(tmp_path):
    memory = fsspec.filesystem("memory")
    (tmp_path / "secret.png").write_bytes(encode(1))
    buffer = io.BytesIO()
    pq.write_table(pa.table({"path": [f"{tmp_path}/secret.png", "../b.png", "c.png"]}), buffer)
    memory.pipe({"/bucket/rows/a.parquet": buffer.getvalue(), "/bucket/b.png": b"", "/bucket/rows/c.png": encode(2)})
    absolute, above, inside = read_all("memory://bucket/rows/a.parquet").values()
    assert "is outside" in absolute
    assert "is outside" in above
    assert inside == encode(2)


def test_changed_parquet_file_is_an_error(tmp_path):
    pq.write_table(pa.table({"image": [encode(1)]}), tmp_path / "a.parquet")
    (chunk,) = Listing([str(tmp_path)], 4, "/nowhere").chunks()
    with pytest.raises(ValueError, match="changed since the job was started"):
        list(read_chunk(replace(chunk, row_groups=(0, 2))))


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz"])
def test_images_of_a_shard_without_masks_and_labels(tmp_path, name):
    members = {"0/a.png": encode(1), "0/a.seg.png": encode(9), "0/a.json": b"{}", "b.jpg": encode(2), "c.cls": b"1"}
    write_tar(tmp_path / name, members, "w:gz" if name.endswith("gz") else "w")
    assert read_all(tmp_path) == {f"{name}/0/a.png": encode(1), f"{name}/b.jpg": encode(2)}


@pytest.mark.parametrize("damage", ["truncated", "header", "gzip"])
def test_damaged_shard_is_a_row_after_its_readable_images(tmp_path, damage):
    write_tar(tmp_path / "s.tar", {f"{i}.png": encode(i) for i in range(3)})
    data = (tmp_path / "s.tar").read_bytes()
    if damage == "truncated":
        (tmp_path / "s.tar").write_bytes(data[: 2 * 1024 + 600])
    elif damage == "header":
        (tmp_path / "s.tar").write_bytes(data[:2048] + b"x" * 512 + data[2560:])
    else:
        (tmp_path / "s.tar").write_bytes(gzip.compress(data)[:-20])
    images = read_all(tmp_path)
    assert images.pop("s.tar").startswith("can't be read to its end")
    if damage != "gzip":
        assert images["s.tar/0.png"] == encode(0)
        assert images["s.tar/1.png"] == encode(1)


def test_images_of_a_bucket_and_those_removed_since():
    memory = fsspec.filesystem("memory")
    for i in range(2):
        memory.pipe_file(f"/pail/{i}.png", encode(i))
    (chunk,) = Listing(["memory://pail"], 4, "/nowhere").chunks()
    memory.rm_file("/pail/1.png")
    first, second = read_chunk(chunk)
    assert first.read() == encode(0)
    with pytest.raises(UnreadableImageError, match="no such file"):
        second.read()
    memory.rm("/pail", recursive=True)
