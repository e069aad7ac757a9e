"""Help, completion and usage errors: complete, helpful, and without importing slow libraries."""

import re

import pytest

from mobilevit_hf import cli
from mobilevit_hf.backends.formats import BACKENDS
from mobilevit_hf.cli import options
from mobilevit_hf.data.reading import DATA_FORMATS

SLOW_MODULES = {"torch", "transformers", "numpy", "datasets", "accelerate", "evaluate", "matplotlib"}


@pytest.fixture(scope="module")
def run_without_slow_modules(run_python):
    """Function that runs command lines in a clean process, asserts exit codes and imports, and returns the output."""

    def run(*command_lines, exit_code=0, modules=SLOW_MODULES):
        return run_python(
            f"""
            import contextlib, sys
            from mobilevit_hf import cli

            for arguments in {command_lines!r}:
                sys.argv = ["mobilevit", *arguments]
                with contextlib.redirect_stderr(sys.stdout):
                    try:
                        cli.main()
                    except SystemExit as end:
                        assert (end.code or 0) == {exit_code}, (arguments, end.code)
                imported = {modules!r} & sys.modules.keys()
                assert not imported, (arguments, imported)
            """
        )

    return run


def test_help_of_every_command_imports_no_slow_module(run_without_slow_modules):
    output = run_without_slow_modules(*([name, flag] for name in cli.COMMANDS for flag in ("--help", "-h")))
    for name in cli.COMMANDS:
        assert output.count(f"Usage: mobilevit {name} ") == 2


def test_root_help_lists_every_command(run_without_slow_modules):
    output = run_without_slow_modules(["--help"], ["-h"], ["--version"])
    for name in cli.COMMANDS:
        assert output.count(f"\n  {name} ") == 2


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["pedict"], "predict"),
        (["chek-data"], "check-data"),
        (["predict", "--modle", "x"], "--model"),
        (["train", "data", "--lerning-rate", "1"], "--learning-rate"),
        (["check-data", "data", "--image-grd", "x.png"], "--image-grid"),
        (["export", "model", "out", "--quantisation", "int8"], "--quantization"),
    ],
)
def test_misspelled_name_suggests_the_right_one(run_without_slow_modules, arguments, suggestion):
    assert suggestion in run_without_slow_modules(arguments, exit_code=2)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell", "pwsh"])
def test_completion_script_of_a_shell(run_python, shell):
    code = f"""
        import os, sys
        os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
        from mobilevit_hf import cli
        sys.argv = ["mobilevit", "--show-completion", {shell!r}]
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code
        """
    assert "_MOBILEVIT_COMPLETE" in run_python(code)


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("mobilevit pre", ["predict"]),
        ("mobilevit predict --thr", ["--threads", "--threshold"]),
        ("mobilevit predict --backend o", sorted(name for name in BACKENDS if name.startswith("o"))),
        ("mobilevit train data --learn", ["--learning-rate"]),
        ("mobilevit train data --multi-scale p", ["progressive"]),
    ],
)
def test_completion_of_commands_options_and_values(run_python, words, completions):
    code = f"""
        import os, sys
        os.environ |= {{
            "_MOBILEVIT_COMPLETE": "complete_bash", "COMP_WORDS": {words!r}, "COMP_CWORD": {str(words.count(" "))!r}
        }}
        from mobilevit_hf import cli
        sys.argv = ["mobilevit"]
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code
        assert not {SLOW_MODULES!r} & sys.modules.keys()
        """
    assert sorted(run_python(code).split()) == completions


def test_data_formats_are_those_of_load_dataset():
    assert tuple(DATA_FORMATS) == options.DATA_FORMATS


def test_error_prints_one_line_and_exit_code_2(mobilevit, tmp_path):
    code, output, error = mobilevit("check-data", tmp_path / "missing")
    assert (code, output) == (2, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_error_names_the_option_instead_of_the_parameter(mobilevit, tmp_path):
    _, _, error = mobilevit("check-data", tmp_path, "--data-format", "abacus")
    assert error.startswith("error: --data-format: got 'abacus'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pedict"], r"No such command 'pedict'\. Did you mean 'predict'\? See .*mobilevit -h\."),
        (["convert"], r"Missing argument 'SOURCE'\. See .*mobilevit convert -h\."),
        (
            ["predict", "--device", "tpu"],
            r"Invalid value for '--device': 'tpu' is not .*mobilevit predict -h\.",
        ),
    ],
)
def test_usage_error_prints_one_line_and_exit_code_2(mobilevit, arguments, message):
    code, output, error = mobilevit(*arguments)
    assert (code, output) == (2, "")
    assert re.fullmatch(f"error: {message}\n", error)


def test_no_arguments_print_the_help(mobilevit):
    code, output, error = mobilevit()
    assert (code, output) == (2, "")
    assert error.startswith("Usage: ")


def test_root_help_shows_whole_summaries(mobilevit, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, output, _ = mobilevit("-h")
    assert code == 0
    assert "...\n" not in output.partition("Commands:")[2]


def test_help_hides_hidden_arguments_and_has_one_style_of_defaults(mobilevit, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert "mobilevit export [OPTIONS] MODEL OUT\n" in mobilevit("export", "-h")[1]
    output = mobilevit("evaluate", "-h")[1]
    assert "Images per batch. Default: 8.  [x>=1]\n" in output
    assert "Device to run on. Default: auto.\n" in output


def test_debug_variable_shows_the_traceback(mobilevit, monkeypatch, tmp_path):
    monkeypatch.setenv("MOBILEVIT_DEBUG", "1")
    with pytest.raises(ValueError, match="missing"):
        mobilevit("check-data", tmp_path / "missing")


def test_predict_of_samples_imports_no_unneeded_module(run_python):
    output = run_python(
        """
        import contextlib, io, sys
        from mobilevit_hf import cli

        sys.argv = ["mobilevit", "predict"]
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                cli.main()
            except SystemExit as end:
                assert not end.code
        print({"datasets", "evaluate", "matplotlib"} & sys.modules.keys())
        """
    )
    assert output == "set()\n"
