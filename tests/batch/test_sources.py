import io
import json
import os
import tarfile

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mobilevit_hf.batch.sources import Listing


def make_image(number):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b/c.jpg", "b/d.JPEG", "b/e/f.webp", "g.txt", "h.svg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "photos"


@pytest.fixture
def memory():
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.rm("/bucket", recursive=True)


def list_names(*sources, size=100, output="/nowhere"):
    return [name for chunk in Listing([*map(str, sources)], size, str(output)).chunks() for name in chunk.names]


def test_folder_is_split_into_chunks_of_image_files(folder):
    listing = Listing([str(folder)], 3, "/nowhere")
    chunks = list(listing.chunks())
    assert [(chunk.index, len(chunk.names), chunk.num_images) for chunk in chunks] == [(0, 3, 3), (1, 1, 1)]
    assert {name for chunk in chunks for name in chunk.names} == {"a.png", "b/c.jpg", "b/d.JPEG", "b/e/f.webp"}
    assert {chunk.location for chunk in chunks} == {str(folder)}
    assert listing.num_files == listing.count_files() == 4
    (note,) = listing.notes
    assert "1 .svg" in note


def test_broken_link_is_listed_for_its_reason(folder):
    (folder / "z.png").symlink_to(folder / "missing.png")
    assert "z.png" in list_names(folder)


def test_folder_is_listed_lazily(folder, monkeypatch):
    """The entries of a folder are drawn while chunks are used: this folder has no end."""
    scandir = os.scandir

    class Endless:
        def __init__(self, path):
            self.entries = list(scandir(path))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def __iter__(self):
            while True:
                yield from self.entries

    monkeypatch.setattr(os, "scandir", Endless)
    chunks = Listing([str(folder)], 2, "/nowhere").chunks()
    assert len(next(chunks).names) == len(next(chunks).names) == 2


def test_overlapping_sources_are_read_once(folder):
    names = list_names(folder, folder / "b", folder / "a.png", folder / "**/*.jpg", folder / "b/c.jpg")
    assert sorted(names) == ["a.png", "b/c.jpg", "b/d.JPEG", "b/e/f.webp"]


def test_names_are_relative_to_the_common_folder(folder):
    assert list_names(folder / "b/c.jpg", folder / "b/e") == ["e/f.webp", "c.jpg"]


def test_output_inside_of_the_source_is_left_out(folder):
    assert sorted(list_names(folder, output=folder / "b")) == ["a.png"]


def test_videos_are_listed_for_their_reason(folder):
    (folder / "v.mp4").write_bytes(b"")
    assert "v.mp4" in list_names(folder)


def test_missing_source_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"source: got .*missing, expected an existing file"):
        list_names(tmp_path / "missing")


def test_parquet_file_is_split_at_row_groups(tmp_path):
    images = [{"bytes": make_image(i), "path": None} for i in range(10)]
    pq.write_table(pa.table({"label": list(range(10)), "image": images}), tmp_path / "a.parquet", row_group_size=3)
    chunks = list(Listing([str(tmp_path)], 6, "/nowhere").chunks())
    assert [(c.kind, c.name, c.row_groups, c.first_row, c.num_images) for c in chunks] == [
        ("parquet", "a.parquet", (0, 2), 0, 6),
        ("parquet", "a.parquet", (2, 4), 6, 4),
    ]


def test_parquet_file_without_images_is_an_error(tmp_path):
    pq.write_table(pa.table({"label": [1], "text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="got the columns label, text, expected one of images"):
        list_names(tmp_path)


def test_metadata_of_an_image_folder_is_skipped_with_a_note(folder):
    pq.write_table(pa.table({"label": [1], "names": ["a.png"]}), folder / "metadata.parquet")
    listing = Listing([str(folder)], 100, "/nowhere")
    assert [chunk.kind for chunk in listing.chunks()] == ["files"]
    assert any("metadata.parquet" in note for note in listing.notes)


def test_shard_is_one_chunk(tmp_path):
    for name in ("b-000.tar", "b-001.tar.gz"):
        with tarfile.open(tmp_path / name, "w"):
            pass
    chunks = list(Listing([str(tmp_path / "b-*")], 6, "/nowhere").chunks())
    assert sorted((c.kind, c.name, c.num_images) for c in chunks) == [
        ("webdataset", "b-000.tar", None),
        ("webdataset", "b-001.tar.gz", None),
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("memory://bucket/x", ["b.png", "y/c.jpg"]),
        ("memory://bucket/x/*.png", ["b.png"]),
        ("memory://bucket/x/y/c.jpg", ["c.jpg"]),
    ],
)
def test_files_of_a_bucket(memory, source, expected):
    for name in ("x/b.png", "x/y/c.jpg", "x/z.txt", "xx/d.png"):
        memory.pipe_file(f"/bucket/{name}", b"")
    assert list_names(source) == expected


def test_output_in_a_bucket_is_left_out(memory):
    memory.pipe_file("/bucket/x/b.png", b"")
    memory.pipe_file("/bucket/x/out/part-00000000.parquet", b"")
    assert list_names("memory://bucket/x", output="memory:///bucket/x/out") == ["b.png"]


def test_unknown_file_system_is_an_error():
    with pytest.raises(ValueError, match=r"source: got unknown:// .*, expected a path or a URL such as hf://"):
        list_names("unknown://bucket/x")


def test_dataset_that_can_not_be_listed_is_an_error(hub):
    import huggingface_hub

    huggingface_hub.HfFileSystem.clear_instance_cache()
    with pytest.raises(ValueError, match=r"source: got hf://datasets/user/missing, .*expected an accessible"):
        list_names("hf://datasets/user/missing")
    huggingface_hub.HfFileSystem.clear_instance_cache()


def test_dataset_of_the_hub_is_listed_at_its_commit(hub, monkeypatch):
    import huggingface_hub

    api = huggingface_hub.HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo("user/photos", repo_type="dataset")
    buffer = io.BytesIO()
    rows = datasets.Dataset.from_dict({"image": [make_image(1), make_image(2)]}).cast_column("image", datasets.Image())
    rows.to_parquet(buffer)
    api.upload_file(
        path_or_fileobj=buffer.getvalue(), path_in_repo="data/a.parquet", repo_id="user/photos", repo_type="dataset"
    )
    monkeypatch.setenv("HF_TOKEN", hub.token)
    huggingface_hub.HfFileSystem.clear_instance_cache()
    (chunk,) = Listing(["hf://datasets/user/photos"], 100, "/nowhere").chunks()
    sha = api.repo_info("user/photos", repo_type="dataset").sha
    assert chunk.location == f"hf://datasets/user/photos@{sha}/data/a.parquet"
    assert (chunk.name, chunk.num_images) == ("data/a.parquet", 2)
    assert hub.token not in json.dumps(chunk.__dict__)
    huggingface_hub.HfFileSystem.clear_instance_cache()
