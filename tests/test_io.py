import os
import stat
from pathlib import Path

import pytest

from mobilevit_hf.io import (
    TEMP_PREFIX,
    atomic_folder,
    home_folder,
    move_into_place,
    parse_json,
    quote_words,
    read_json,
    temporary_folder,
    temporary_folders,
    user_path,
    write_atomically,
    write_text,
)


@pytest.fixture(params=[0o022, 0o077, 0o002, 0o027])
def umask(request):
    previous = os.umask(request.param)
    yield request.param
    os.umask(previous)


def modes(folder):
    """Return the permission bits of the files and folders below a folder."""
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


def test_user_path_expands_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/data") == tmp_path / "data"
    assert user_path(Path("data")) == Path("data")


def test_paths_in_commands_are_quoted_for_the_shell(monkeypatch):
    monkeypatch.setattr("os.name", "posix")
    assert quote_words("--model", "my-model", "my model", r"C:\models") == r"--model my-model 'my model' 'C:\models'"
    monkeypatch.setattr("os.name", "nt")
    assert quote_words("--model", "my-model", "my model", r"C:\models") == r'--model my-model "my model" C:\models'


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


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_modes_follow_the_umask(tmp_path, umask):
    def write(parent):  # as safetensors and coremltools write
        (parent / "a").touch(mode=0o600)
        (parent / "folder").mkdir(mode=0o700)
        (parent / "folder" / "b").touch(mode=0o600)

    with atomic_folder(tmp_path) as temporary:
        write(temporary)
    with temporary_folder(tmp_path) as temporary:
        (temporary / "new").mkdir(mode=0o700)
        write(temporary / "new")
        move_into_place(temporary / "new", tmp_path / "moved")
    files, folders = 0o666 & ~umask, 0o777 & ~umask
    parts = {"a": files, "folder": folders, "folder/b": files}
    assert modes(tmp_path) == {**parts, "moved": folders, **{f"moved/{name}": mode for name, mode in parts.items()}}


def test_folder_is_replaced_whole(tmp_path):
    (tmp_path / "model" / "old").mkdir(parents=True)
    with atomic_folder(tmp_path) as temporary:
        (temporary / "model").mkdir()
        (temporary / "model" / "new").write_text("")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["model", "model/new"]


def test_temporary_folders_are_only_those_of_this_package(tmp_path):
    (tmp_path / ".scratch-notes").mkdir()
    (tmp_path / f"{TEMP_PREFIX}file").write_text("")
    (tmp_path / f"{TEMP_PREFIX}link").symlink_to(tmp_path / ".scratch-notes")
    with temporary_folder(tmp_path) as temporary:
        assert temporary_folders(tmp_path) == [temporary]
    assert temporary_folders(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows can't lock folders")
def test_temporary_folders_of_killed_processes_are_removed(tmp_path, run_python):
    abandoned = tmp_path / f"{TEMP_PREFIX}abandoned"
    abandoned.mkdir()
    with temporary_folder(tmp_path) as used:
        run_python(
            f"import pathlib; from mobilevit_hf import io; io.remove_abandoned(pathlib.Path({str(tmp_path)!r}))"
        )
        assert used.is_dir()
        assert not abandoned.exists()


def test_home_folder_of_an_unknown_user_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home_folder() == tmp_path
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    assert home_folder() is None


def test_json_object_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, null]}')
    assert read_json(tmp_path / "a.json") == {"a": [1, None]}
    assert read_json(tmp_path / "missing.json") == {}


def test_json_array_is_read(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    assert read_json(tmp_path / "a.json", list) == [1]
    assert read_json(tmp_path / "missing.json", list) == []


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_json_of_other_editors_is_read(tmp_path, encoding):
    (tmp_path / "a.json").write_text('{"ä": 1}', encoding=encoding)
    assert read_json(tmp_path / "a.json") == {"ä": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "can't be read"),
        (b"{", "can't be read"),
        (b"\xff\xfe{", "can't be read"),
        (b'{"a": "\xe4"}', "can't be read"),
        (b"[1]", "got list, expected a JSON object"),
        (b"null", "got NoneType, expected a JSON object"),
        (b"[" * 10**6, "can't be read .too deeply nested"),
        (b'{"a":' * 10**6, "can't be read .too deeply nested"),
        (b'{"a": NaN}', "can't be read .got NaN, expected a finite number"),
        (b'{"a": -Infinity}', "can't be read .got -Infinity, expected a finite number"),
        (b'{"a": 1e999}', "can't be read .got 1e999, expected a finite number"),
        (b'{"a": %s}' % (b"9" * 10**6), "can't be read .got 9{20}, expected a finite number"),
    ],
)
def test_invalid_json_names_the_file(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json: {message}.*Remove or fix it") as error:
        read_json(tmp_path / "a.json")
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


def test_json_is_read_from_a_file_of_limited_size_only(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.mkdir()
    with pytest.raises(ValueError, match=r"a\.json: got a folder, expected a JSON file\. Remove it\."):
        read_json(path)
    path.rmdir()
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no space
    with pytest.raises(ValueError, match=r"a\.json: got 1048576 MiB, expected at most 64\."):
        read_json(path)
    if hasattr(os, "mkfifo"):
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(ValueError, match=r"a\.json: got no file, expected a JSON file"):
            read_json(path)


def test_parsed_numbers_keep_their_type():
    assert [repr(value) for value in parse_json("[1, 1.0, -2e3, true]")] == ["1", "1.0", "-2000.0", "True"]
