"""Rows of `results.csv`."""

import csv
import json

import numpy as np
import pytest
from training_runs import read_metrics

from mobilevit_hf.training.results_table import make_rows, write_results_table
from mobilevit_hf.training.trainer import train

HISTORY = [
    {"step": 2, "epoch": 0.1, "loss": 4.0, "loss_ce": 3.0, "learning_rate": 0.1, "seconds": 1.0},
    {"step": 3, "epoch": 0.2, "loss": 1.0, "loss_ce": 1.0, "learning_rate": 0.2, "seconds": 2.0},
    {"step": 3, "epoch": 0.2, "eval_loss": 2.0, "eval_map": 0.25},
    {"step": 4, "epoch": 0.3, "loss": 6.0, "loss_ce": 5.0, "learning_rate": 0.3, "seconds": 3.0},
    {"step": 4, "epoch": 0.3, "eval_loss": 1.0, "eval_map": 0.5},
]


def test_rows_hold_the_mean_losses_since_the_previous_evaluation():
    first, second = make_rows(HISTORY)
    assert first == pytest.approx(
        {"step": 3, "epoch": 0.2, "learning_rate": 0.2, "seconds": 2.0, "eval_loss": 2.0, "eval_map": 0.25}
        | {"loss": (2 * 4.0 + 1.0) / 3, "loss_ce": (2 * 3.0 + 1.0) / 3}
    )
    assert (second["step"], second["loss"], second["eval_map"]) == (4, 6.0, 0.5)


def test_without_evaluations_each_interval_has_a_row(tmp_path):
    write_results_table(tmp_path / "results.csv", HISTORY[:2])
    header, *lines = (tmp_path / "results.csv").read_text().splitlines()
    assert header == "step,epoch,seconds,learning_rate,loss,loss_ce"
    assert lines == ["2,0.1,1.0,0.1,4.0,3.0", "3,0.2,2.0,0.2,1.0,1.0"]


@pytest.mark.parametrize("task", ["image-classification", "object-detection"])
def test_run_writes_losses_metrics_and_intervals(task, one_thread, no_plots, make_arguments, tmp_path):
    result = train(make_arguments(tmp_path / "run", task, max_steps=4, eval_steps=3, logging_steps=2))
    training = [line for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert [line["step"] for line in training] == [2, 3, 4]
    with (tmp_path / "run/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["3", "4"]
    mean = np.average([line["loss"] for line in training[:2]], weights=[2, 1])
    assert float(rows[0]["loss"]) == pytest.approx(mean)
    parts = {"loss_ce", "loss_bbox"} if task == "object-detection" else set()
    assert {*rows[0]} >= {"eval_loss", f"eval_{result.metric}", "learning_rate", *parts, *(f"eval_{p}" for p in parts)}
    for line in training:
        assert parts <= {*line}
        assert not parts or line["loss_ce"] + line["loss_bbox"] == pytest.approx(line["loss"], rel=1e-5)
    last = read_metrics(tmp_path / "run")[-1]
    saved = json.loads((tmp_path / "run/results.json").read_text())
    for name, (low, high) in saved["intervals"].items():
        assert [last[f"eval_{name}_low"], last[f"eval_{name}_high"]] == [low, high]
