"""End of a command's process: exit code, one line per error, Ctrl-C, and output in any encoding."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from mobilevit_hf import cli
from mobilevit_hf.cli import console, interrupts, models
from mobilevit_hf.redaction import redact, redact_message

COMMAND = [sys.executable, "-m", "mobilevit_hf"]
TOKEN = "hf_" + "a1B2" * 8


@pytest.fixture
def failing_command(mobilevit, monkeypatch):
    """Function that runs `mobilevit models` with an error raised in it."""

    def run(error):
        def fail():
            raise error

        monkeypatch.setattr(models, "builtin_models", fail)
        return mobilevit("models")

    return run


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("names"), "unexpected KeyError: 'names'. Set MOBILEVIT_DEBUG=1 for the traceback."),
        (RecursionError("too deep"), "unexpected RecursionError: too deep. Set MOBILEVIT_DEBUG=1 for the traceback."),
        (MemoryError(), "unexpected MemoryError. Set MOBILEVIT_DEBUG=1 for the traceback."),
        (RuntimeError("one\ntwo."), "unexpected RuntimeError: one two. Set MOBILEVIT_DEBUG=1 for the traceback."),
        (
            RuntimeError("Caught in worker\nTraceback (most recent call last):\n  File x\nOSError: disk is full"),
            "unexpected RuntimeError: OSError: disk is full. Set MOBILEVIT_DEBUG=1 for the traceback.",
        ),
        (
            RuntimeError("Could not determine home directory."),
            "HOME: got no value and no user, expected a folder. Set it.",
        ),
        (ValueError("size: got 0,\nexpected 1."), "size: got 0, expected 1."),
        (ValueError(f"{'x' * 5000}: no such file."), f"{'x' * 300}… no such file."),
        (OSError(f"http://me:secret@host/a?X-Signature=1 {TOKEN}"), "http://…@host/a?… hf_…"),
    ],
)
def test_error_is_one_line(failing_command, error, line):
    assert failing_command(error) == (console.EXIT_ERROR, "", f"error: {line}\n")


def test_long_error_is_shortened(failing_command):
    assert len(failing_command(RuntimeError("word " * 10_000))[2]) < 1000


def test_interrupt_is_quiet(failing_command):
    assert failing_command(KeyboardInterrupt()) == (130, "", "")


@pytest.mark.parametrize("command", ["models", "predict"])
def test_interrupt_during_an_import_is_quiet(command, tmp_path):
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    result = subprocess.run(
        [*COMMAND, command],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


def test_ignored_interrupt_stays_ignored():
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts.handle_interrupts(interrupts.interrupt)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)


def test_closed_pipe_is_quiet():
    with subprocess.Popen(
        [*COMMAND, "models"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        result = subprocess.run([*COMMAND, "models"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == console.EXIT_ERROR
    message = r"error: .*No space left on device\. Free disk space and run the command again\.\n"
    assert re.fullmatch(message, result.stderr)


# --- encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-8"])
def test_output_is_printed_in_what_the_encoding_has(encoding):
    code = """
        from mobilevit_hf.cli import console
        console.replace_unencodable()
        table = console.make_table("label", "√x")
        table.add_row(console.make_cell("日本 café \\U0001f600"), "██")
        console.output.print(table)
        console.print_line("photo\\udce9.jpg → out")
        console.log("note", "naïve → …")
    """
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(line.strip() for line in code.splitlines())],
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        capture_output=True,
        check=True,
    )
    text = (result.stdout + result.stderr).decode(encoding)
    assert "photo\\xe9.jpg" in text
    if encoding == "utf-8":
        assert all(part in text for part in ("√x", "日本 café 😀", "██", "→ out", "naïve → …"))
    else:
        assert all(part in text for part in ("sqrtx", r"\u65e5\u672c", r"\U0001f600", "##", "-> out", "-> "))
    assert ("café" in text) is (encoding != "ascii")


def test_json_is_ascii_and_refuses_nan(capsys):
    console.print_json({"label": "日本\udce9"})
    output = capsys.readouterr().out
    assert output.isascii()
    assert json.loads(output) == {"label": "日本\udce9"}
    with pytest.raises(ValueError, match="got NaN or infinity in the result"):
        console.print_json({"score": float("nan")})


# --- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("proxy http://user:pa@ss@host:8080/x fails", "proxy http://…@host:8080/x fails"),
        (f"Authorization: Bearer {TOKEN}", "Authorization: Bearer …"),
        (f"got {TOKEN}, hf_hub_download", "got hf_…, hf_hub_download"),
        ("mail me@host.org, a@b", "mail me@host.org, a@b"),
    ],
)
def test_secrets_are_redacted(text, expected):
    assert redact(text) == expected


def test_password_of_a_url_is_not_printed(capsys):
    name = "https://user:secret@host/a.jpg"
    console.print_line(name)
    console.print_json({"image": name, "error": f"{name} is missing"})
    console.log("unreadable", name)
    out, err = capsys.readouterr()
    assert "secret" not in out + err
    assert out.splitlines()[1].isascii()
    assert json.loads(out.splitlines()[1])["image"] == "https://…@host/a.jpg"


def test_token_of_the_environment_is_redacted(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "unusual-secret")
    assert redact("header unusual-secret") == "header hf_…"


def test_query_of_a_url_is_redacted_in_messages():
    assert redact_message("https://host/a.png?token=1: HTTP 403. Really? yes=no") == (
        "https://host/a.png?… HTTP 403. Really? yes=no"
    )


def test_scripts_exit_as_commands(monkeypatch, capfd):
    def command(size: int) -> None:
        raise RuntimeError(f"size {size}")

    monkeypatch.setattr(sys, "argv", ["script", "3"])
    with pytest.raises(SystemExit) as end:
        cli.run(command)
    assert end.value.code == console.EXIT_ERROR
    assert capfd.readouterr().err.startswith("error: unexpected RuntimeError: size 3.")
