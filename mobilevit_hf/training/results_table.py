"""Rows of `results.csv`: the history of a training run for a spreadsheet, as in `metrics.jsonl` and the trackers."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation import EvaluationResult
from ..io import write_text

# Columns of the progress, in this order before the others. All others are means, or values of an evaluation.
PROGRESS = ("step", "epoch", "progress", "seconds", "learning_rate")


def evaluation_values(result: EvaluationResult) -> dict[str, float]:
    """Return the losses, the metrics and the ends of their intervals, by their names in the history."""
    values = {f"eval_{name}": value for name, value in result.losses.items()}
    values |= {f"eval_{name}": value for name, value in result.metrics.items() if isinstance(value, float)}
    for name, (low, high) in result.intervals.items():
        values |= {f"eval_{name}_low": low, f"eval_{name}_high": high}
    return values


def write_results_table(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file with a row per evaluation, or per logging interval without evaluations; atomically."""
    rows = make_rows(history)
    columns = dict.fromkeys([*PROGRESS, *(name for row in rows for name in row)])
    text = io.StringIO()
    writer = csv.DictWriter(text, [name for name in columns if any(name in row for row in rows)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def make_rows(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per evaluation with its values and the training since the previous one.

    Losses, throughput and waiting times are means over the steps of that time, the others are the latest values.
    Without evaluations, there is a row per line of the history.
    """
    if not any(map(_is_evaluation, history)):
        return [dict(line) for line in history]
    rows, interval = [], []
    for line in history:
        if not _is_evaluation(line):
            interval.append(line)
            continue
        rows.append({**_average(interval, rows[-1]["step"] if rows else 0), **line})
        interval = []
    return rows


def _is_evaluation(line: Mapping[str, Any]) -> bool:
    return any(name.startswith("eval_") for name in line)


def _average(lines: Iterable[Mapping[str, Any]], start: int) -> dict[str, Any]:
    """Return the latest progress and the means of the other values, weighted with the steps from `start` on."""
    values: dict[str, Any] = {}
    sums: dict[str, float] = {}
    first = start
    for line in lines:
        values |= line
        for name in line.keys() - {*PROGRESS}:
            sums[name] = sums.get(name, 0.0) + line[name] * (line["step"] - start)
        start = line["step"]
    return values | {name: value / (start - first) for name, value in sums.items() if start > first}
