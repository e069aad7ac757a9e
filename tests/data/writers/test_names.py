"""Names of images in predictions, and of their copies."""

import pytest

from mobilevit_hf.data.image_formats import find_images
from mobilevit_hf.data.writers.names import class_folders, file_names, relative_names, safe_name


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.jpg", "in/one/a.jpg", "in/two/a.jpg", "other/a.jpg", "in/b.png", "in/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["in"], ["a.jpg", "b.jpg", "b.png", "one/a.jpg", "two/a.jpg"]),
        (["in/one", "in/two"], ["one/a.jpg", "two/a.jpg"]),
        (["in/one/a.jpg"], ["a.jpg"]),
        (["in/one/a.jpg", "other/a.jpg"], ["in/one/a.jpg", "other/a.jpg"]),
        (["in/*/a.jpg"], ["one/a.jpg", "two/a.jpg"]),
        (["in/one/../one/a.jpg", "./in/one/a.jpg"], ["a.jpg"]),
        (["http://user:secret@host/a.jpg", "in/one"], ["http://…@host/a.jpg", "a.jpg"]),
    ],
)
def test_names_are_relative_to_the_common_folder(files, inputs, expected):
    sources, missing, _ = find_images(inputs)
    assert not missing
    assert list(relative_names(inputs, sources).values()) == expected


def test_copies_have_different_names_without_suffix(files):
    sources, _, _ = find_images(["in"])
    names = list(file_names(relative_names(["in"], sources)).values())
    assert names == ["a.jpg", "b.jpg", "b-2.png", "one/a.jpg", "two/a.jpg"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("https://host:80/x/../../y/a%20b.jpg?q=1", "host/x/__/__/y/a b.jpg"),
        ("https://host/%2e%2e/%2Fetc/a", "host/__/etc/a.png"),
        ("http://[::1/a.png", "http_/[__1/a.png"),
        ("http://host/", "host.png"),
    ],
)
def test_copies_of_urls_stay_in_the_folder(source, expected):
    (name,) = file_names({source: source}).values()
    assert name == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", "a.jpg"),
        ("..", "__"),
        (".hidden.jpg", "_hidden.jpg"),
        ("a/b\\c:d*.jpg", "a_b_c_d_.jpg"),
        ("new\nline\x1b.jpg", "new_line_.jpg"),
        ("end. ", "end_"),
        ("", "_"),
        ("con", "_con"),
        ("nul.jpg", "_nul.jpg"),
        ("日本", "日本"),
        ("bad\udcff.jpg", "bad_.jpg"),
    ],
)
def test_safe_names(name, expected):
    assert safe_name(name) == expected


def test_long_names_fit_a_file_system():
    assert len(safe_name("日" * 300 + ".jpg").encode()) <= 205


def test_class_folders_are_unique():
    assert class_folders(["a/b", "a_b", "A_B", "..", "cat"]) == {
        "a/b": "a_b",
        "a_b": "a_b-2",
        "A_B": "A_B-3",
        "..": "__",
        "cat": "cat",
    }
