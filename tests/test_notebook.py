"""The notebook of the documentation runs from top to bottom, offline, except the cells that install packages."""

import json
import os
from pathlib import Path

import pytest
from conftest import PACKAGE_PARENT

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"
INSTALLS = "skip-execution"  # tag of cells that nbclient skips
SECONDS_PER_CELL = 300


def test_saved_notebook_has_no_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        assert not cell.get("outputs")
        tags = cell["metadata"].get("tags", [])
        assert (INSTALLS in tags) == "".join(cell["source"]).startswith("%pip"), cell["id"]


@pytest.fixture
def executed_notebook(tmp_path, monkeypatch):
    """The notebook with outputs, executed in an empty folder and without a Hub."""
    pytest.importorskip("ipykernel")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PACKAGE_PARENT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS_PER_CELL, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    return client.execute()


def collect_text(notebook):
    """Return the text of all outputs."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


@pytest.mark.slow
def test_notebook_runs_offline(executed_notebook, tmp_path):
    text = collect_text(executed_notebook)
    assert "t-shirt" in text
    assert "cells, the first:" in text
    assert "accuracy on the validation split:" in text
    assert text.count("'label': 'green'") >= 2
    assert (tmp_path / "my-model" / "report.html").is_file()
