"""Archives of datasets."""

import io
import os
import stat
import tarfile
import zipfile

import pytest
from dataset_files import noise_image, png_bytes, split_sizes

from mobilevit_hf.data import archives
from mobilevit_hf.data.reading import load_dataset

FILES = {f"pets/train/{name}/{n}.png": png_bytes(noise_image(n)) for name in ("cat", "dog") for n in range(2)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOBILEVIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_archive(path, files):
    """Write an archive with files by name; a value of None is a link to /etc, a string one to that path."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                entry = zipfile.ZipInfo(name)
                if isinstance(content, str):
                    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(entry, content)
        return path
    mode = {".tar": "w", ".gz": "w:gz", ".tgz": "w:gz", ".xz": "w:xz"}[path.suffix]
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["pets.zip", "pets.tar", "pets.tar.gz", "pets.tgz", "pets.TAR.xz"])
def test_archives_are_read_and_unpacked_once(tmp_path, cache, name, monkeypatch):
    path = write_archive(tmp_path / name, FILES)
    dataset = load_dataset(path, validation_fraction=0)
    assert (dataset.classes, split_sizes(dataset)) == (("cat", "dog"), {"train": 4})
    assert dataset.root.is_relative_to(cache)
    assert name in dataset.notes[0]
    monkeypatch.setattr(archives, "_extract", None)
    path.rename(tmp_path / "other.zip" if name.endswith("zip") else tmp_path / "other.tar")
    assert load_dataset(tmp_path / ("other.zip" if name.endswith("zip") else "other.tar")).root == dataset.root


@pytest.mark.parametrize("suffix", ["zip", "tar"])
@pytest.mark.parametrize(
    "member",
    [
        ("../secret.png", b""),
        ("/tmp/secret.png", b""),
        ("a/../../b.png", b""),
        ("C:/b.png", b""),
        ("a/b", "/etc/hosts"),
        ("..\\secret.png", b""),
        ("d/" * 100 + "a.png", b""),
    ],
    ids=lambda member: member[0][:20],
)
def test_unsafe_members_are_refused(tmp_path, cache, suffix, member):
    path = write_archive(tmp_path / f"data.{suffix}", FILES | dict([member]))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"data.{suffix}: "):
        load_dataset(path)
    assert not list((cache / "datasets").iterdir())
    assert set(tmp_path.iterdir()) - set(before) <= {cache}


def test_decompression_bombs_are_refused(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(archives, "MIN_BYTES", 2**20)
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", bytes(2**22))
    with pytest.raises(ValueError, match=r"bomb\.zip: got more than \d+ MiB, expected"):
        load_dataset(path)
    assert not list((cache / "datasets").iterdir())


def test_many_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILES", 3)
    with pytest.raises(ValueError, match="more than 3 files"):
        load_dataset(write_archive(tmp_path / "data.tar", FILES))


@pytest.mark.parametrize("name", ["data.zip", "data.tar.gz", "data.tar"])
@pytest.mark.parametrize("damage", ["text", "cut", "changed"])
def test_damaged_archives_are_reported(tmp_path, cache, name, damage):
    path = write_archive(tmp_path / name, FILES)
    content = bytearray(path.read_bytes())
    if damage == "changed" and name == "data.tar":
        pytest.skip("tar files have no checksum of the content")
    content[200:400] = bytes(200) if damage == "changed" else content[200:400]
    path.write_bytes({"text": b"<html>", "cut": content[: len(content) // 2], "changed": content}[damage])
    with pytest.raises(ValueError, match="can't be unpacked"):
        load_dataset(path)
    assert not list((cache / "datasets").iterdir())


def test_archives_without_a_dataset_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"^\S*data\.zip: got no dataset"):
        load_dataset(write_archive(tmp_path / "data.zip", {"a.docx": b""}))


def test_a_folder_with_the_suffix_of_an_archive_is_read(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "data.zip" / name).mkdir(parents=True)
        (tmp_path / "data.zip" / name / "1.png").write_bytes(FILES["pets/train/cat/0.png"])
    assert load_dataset(tmp_path / "data.zip").classes == ("cat", "dog")


@pytest.mark.parametrize("name", ["data.rar", "data.7z"])
def test_other_archives_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{name}.*Unpack it"):
        load_dataset(tmp_path / name)


def test_modes_follow_the_umask(tmp_path):
    root = archives.unpack(write_archive(tmp_path / "data.zip", FILES))
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(root.stat().st_mode) == 0o777 & ~mask
