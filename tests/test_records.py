import dataclasses
import json
import re

import pytest

from mobilevit_hf.model_sources import builtin, builtin_models
from mobilevit_hf.records import (
    EXPORT_FILE,
    RESULTS_FILE,
    TRAINING_FILE,
    DatasetRecord,
    ExportRecord,
    InitialCheckpoint,
    ResultsRecord,
    TrainingRecord,
    from_dict,
    read_export_records,
    read_record,
    to_dict,
    write_export_records,
    write_record,
)

TRAINING = TrainingRecord(
    task="object-detection",
    command="mobilevit train DATA --model xxs",
    initial_checkpoint=InitialCheckpoint(kind="scratch", name="xxs"),
    data=DatasetRecord(
        format="voc",
        classes=["cat", "dog"],
        widths={"min": 64, "median": 96.5, "max": 128},
        counts={"train": {"cat": 3, "dog": 0}},
        skipped={"unreadable image": 1},
    ),
    arguments={"max_steps": 10, "max_minutes": None},
    seconds=1.5,
)
EXPORTS = [
    ExportRecord(backend="onnx", file="onnx/model.onnx", size=[256, 256], latency_ms={"1": 3.5, "8": 20}),
    ExportRecord(backend="executorch", file="model.pte", verified=False),
]


@pytest.mark.parametrize(
    "record", [TRAINING, ResultsRecord(metric="accuracy", metrics={"accuracy": 1.0}, intervals={"accuracy": [0.9, 1]})]
)
def test_record_survives_a_round_trip_through_a_file(tmp_path, record):
    write_record(tmp_path / "record.json", record)
    assert read_record(tmp_path / "record.json", type(record)) == record


def test_none_is_left_out_of_records_but_kept_in_their_dicts():
    values = to_dict(TRAINING)
    assert "date" not in values
    assert "base_model" not in values["initial_checkpoint"]
    assert "box_sides" not in values["data"]
    assert values["arguments"] == {"max_steps": 10, "max_minutes": None}


def test_missing_file_has_no_record(tmp_path):
    assert read_record(tmp_path / TRAINING_FILE, TrainingRecord) is None
    assert read_export_records(tmp_path / EXPORT_FILE) == []


def test_unknown_keys_are_ignored():
    values = to_dict(TRAINING) | {"new": 1}
    values["data"] = values["data"] | {"newer": 2}
    assert from_dict(TrainingRecord, values, TRAINING_FILE) == TRAINING


def test_null_selects_the_default():
    values = to_dict(TRAINING) | {"steps": None, "versions": None}
    assert from_dict(TrainingRecord, values, TRAINING_FILE) == TRAINING


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": None}, "got no task"),
        ({"data": {"format": "voc"}}, "got no classes"),
        ({"steps": "ten"}, "'steps'"),
        ({"command": 3}, "'command'"),
        ({"seconds": "1.5"}, "'seconds'"),
        ({"data": 3}, "got int"),
        ({"hardware": {"cores": [1]}}, "'cores'"),
        ({"hardware": {"threads": "two"}}, "'threads'"),
        ({"data": {"format": "voc", "classes": [1]}}, "'classes'"),
        ({"data": {"format": "voc", "classes": [], "counts": {"train": 3}}}, "'counts'"),
        ({"initial_checkpoint": {"kind": "random"}}, "'kind'"),
    ],
)
def test_invalid_record_names_the_file_and_the_field(tmp_path, change, message):
    path = tmp_path / TRAINING_FILE
    path.write_text(json.dumps(to_dict(TRAINING) | change))
    with pytest.raises(ValueError, match=message) as error:
        read_record(path, TrainingRecord)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": {"accuracy": "high"}},
        {"metrics": {"accuracy": {"cat": 1}}},
        {"metrics": {"per_class": 5}},
        {"metrics": {"per_class": {"cat": {"f1": "x"}}}},
        {"intervals": {"accuracy": 5}},
        {"intervals": {"accuracy": [0.5]}},
    ],
)
def test_invalid_metrics_name_the_file_and_the_field(tmp_path, change):
    path = tmp_path / RESULTS_FILE
    path.write_text(json.dumps({"metric": "accuracy"} | change))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: .*{next(iter(change))}.*\. Remove or fix it\.$"):
        read_record(path, ResultsRecord)


@pytest.mark.parametrize("text", ["[1]", "{", "{}"])
def test_file_without_a_record_is_an_error(tmp_path, text):
    path = tmp_path / RESULTS_FILE
    path.write_text(text)
    with pytest.raises(ValueError, match=RESULTS_FILE):
        read_record(path, ResultsRecord)


def test_export_records_survive_a_round_trip_through_a_file(tmp_path):
    write_export_records(tmp_path / EXPORT_FILE, EXPORTS)
    assert read_export_records(tmp_path / EXPORT_FILE) == EXPORTS


@pytest.mark.parametrize("text", ["", "{", "{}", "3", "[1, null]", '[{"backend": "onnx"}]', '[{"file": 3}]'])
def test_invalid_export_records_are_skipped(tmp_path, text):
    (tmp_path / EXPORT_FILE).write_text(text)
    assert read_export_records(tmp_path / EXPORT_FILE) == []


def test_valid_export_records_are_read_next_to_invalid_ones(tmp_path):
    (tmp_path / EXPORT_FILE).write_text(json.dumps([3, to_dict(EXPORTS[0]), {"backend": "onnx"}]))
    assert read_export_records(tmp_path / EXPORT_FILE) == EXPORTS[:1]


@pytest.mark.parametrize("name", builtin_models())
def test_builtin_models_have_complete_records(name):
    training = read_record(builtin(name) / TRAINING_FILE, TrainingRecord)
    results = read_record(builtin(name) / RESULTS_FILE, ResultsRecord)
    assert training.data.classes
    assert results.steps == training.steps
    assert results.metric in results.metrics
    for path, record in ((TRAINING_FILE, training), (RESULTS_FILE, results)):
        stored = json.loads((builtin(name) / path).read_text())
        assert set(stored) <= {field.name for field in dataclasses.fields(record)}
        assert to_dict(record) == stored
