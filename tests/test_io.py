from pathlib import Path

import pytest

from mobilevit_hf.io import TEMP_PREFIX, atomic_folder, read_json, user_path, write_atomically, write_text


def test_user_path_expands_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/data") == tmp_path / "data"
    assert user_path(Path("data")) == Path("data")


def test_user_path_of_an_unknown_user_is_unchanged():
    assert user_path("~no-such-user/data") == Path("~no-such-user/data")


def test_files_are_moved_together_at_the_end(tmp_path):
    (tmp_path / "a").write_text("old")
    with atomic_folder(tmp_path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(TEMP_PREFIX)
        (temporary / "a").write_text("new")
        (temporary / "b").write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new", "b": "new"}


def test_no_file_is_moved_after_an_error(tmp_path):
    (tmp_path / "a").write_text("old")

    def fail():
        with atomic_folder(tmp_path) as temporary:
            (temporary / "a").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_file_is_complete_or_unchanged(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "before, ä")
    assert path.read_text(encoding="utf-8") == "before, ä"

    def fail(file):
        file.write(b"half of")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_text(encoding="utf-8") == "before, ä"
    assert list(tmp_path.iterdir()) == [path]


def test_json_object_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, null]}')
    assert read_json(tmp_path / "a.json") == {"a": [1, None]}
    assert read_json(tmp_path / "missing.json") == {}


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "can't be read"), (b"\xff\xfe{", "can't be read"), (b"[1]", "got list")]
)
def test_invalid_json_names_the_file(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json: {message}.*Remove or fix it"):
        read_json(tmp_path / "a.json")
