import json

import pyarrow.parquet as pq
import pytest

from mobilevit_hf.batch import runner
from mobilevit_hf.cli.options import fill_optional_values


@pytest.fixture(autouse=True)
def _default_allocator(monkeypatch):
    monkeypatch.setattr("mobilevit_hf.batch.worker.tune_allocator", lambda: True)


@pytest.fixture
def photos(image, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        image.rotate(90 * i).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("options", [["--workers", 1], ["--format", "parquet"], ["--chunk-size", 2], ["--embeddings"]])
def test_an_option_for_large_datasets_writes_parts(mobilevit, photos, classifier, tmp_path, options):
    out = tmp_path / "out"
    code, stdout, err = mobilevit("predict", photos, "--model", classifier, "--output", out, *options)
    assert (code, stdout) == (0, "")
    parts = sorted(out.glob("part-*.parquet"))
    assert len(parts) == (2 if "--chunk-size" in options else 1)
    assert sum(pq.read_metadata(part).num_rows for part in parts) == 3
    assert err.startswith(f"saved: {out} (3 images in {len(parts)} part{'s' * (len(parts) > 1)}, ")


def test_json_lines_are_a_format_of_both_outputs(mobilevit, photos, classifier, tmp_path):
    mobilevit("predict", photos, "--model", classifier, "--output", tmp_path / "file", "--format", "jsonl")
    assert (tmp_path / "file" / "predictions.jsonl").is_file()
    options = ["--format", "jsonl", "--workers", 1]
    mobilevit("predict", photos, "--model", classifier, "--output", tmp_path / "parts", *options)
    assert (tmp_path / "parts" / "part-00000000.jsonl").is_file()


def test_parquet_source_needs_no_option(mobilevit, photos, classifier, tmp_path):
    import pyarrow as pa

    table = pa.table({"image": [(photos / f"{i}.png").read_bytes() for i in range(3)]})
    pq.write_table(table, tmp_path / "a.parquet")
    code, _, err = mobilevit("predict", tmp_path / "a.parquet", "--model", classifier, "--output", tmp_path / "out")
    assert code == 0, err
    names = pq.read_table(tmp_path / "out" / "part-00000000.parquet")["image"].to_pylist()
    assert names == [f"a.parquet#{i}" for i in range(3)]


def test_unreadable_images_are_reported_and_set_the_exit_code(mobilevit, photos, classifier, tmp_path):
    (photos / "bad.jpg").write_bytes(b"no image")
    arguments = ["predict", photos, "--model", classifier, "--output", tmp_path / "out", "--workers", 1]
    code, _, err = mobilevit(*arguments)
    assert code == 1
    assert "unreadable: bad.jpg: not an image in a format Pillow reads\n" in err
    assert "warning: 1 of 4 images could not be read; the column error has the reasons." in err
    code, _, err = mobilevit(*arguments, "--resume")
    assert code == 1
    assert f"note: 4 of 4 images are in {tmp_path / 'out'} already." in err


def test_existing_output_is_continued_with_resume_only(mobilevit, photos, classifier, tmp_path):
    arguments = ["predict", photos, "--model", classifier, "--output", tmp_path / "out"]
    mobilevit(*arguments, "--workers", 1)
    code, _, err = mobilevit(*arguments)
    assert code == 2
    assert err == f"error: --output: {tmp_path / 'out'} exists. Continue it with --resume, or pass another path.\n"
    code, _, err = mobilevit(*arguments, "--resume", "--top-k", 2)
    assert code == 2
    assert err.startswith(f"error: --top-k: got 2, expected 5 as when the job in {tmp_path / 'out'} was started.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "out", "--save", "copies"], "--save: not for large datasets"),
        (["--output", "out", "--json"], "--json: not for large datasets"),
        (["--output", "out", "--compile"], "--compile: not for large datasets"),
        (["--output", "out.csv"], "--output: got the file out.csv, expected a folder"),
        (["--output", "out", "--format", "coco"], "--format: got coco, expected parquet or jsonl"),
        ([], "--output: got none, expected a folder"),
    ],
)
def test_options_of_single_images_are_rejected(mobilevit, photos, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = mobilevit("predict", photos, "--workers", 2, *options)
    assert code == 2
    assert err.startswith(f"error: {message}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a", "--ray"], ["a", "--ray", "auto"]),
        (["--ray", "photos", "--workers", "2"], ["--ray", "auto", "photos", "--workers", "2"]),
        (["--ray", "local"], ["--ray", "local"]),
        (["--ray", "10.0.0.1:6379", "a"], ["--ray", "10.0.0.1:6379", "a"]),
        (["--ray", "ray://head:10001"], ["--ray", "ray://head:10001"]),
        (["--", "--ray"], ["--", "--ray"]),
    ],
)
def test_address_of_ray_may_be_left_out(arguments, expected):
    assert fill_optional_values(arguments, ["--ray"]) == expected


def test_ray_and_workers_are_passed_on(mobilevit, photos, classifier, tmp_path, monkeypatch):
    created = []
    make_executor = runner.make_executor

    def record(workers, ray):
        created.append((workers, ray))
        return make_executor(None, None)

    monkeypatch.setattr(runner, "make_executor", record)
    options = ["--model", classifier, "--output", tmp_path / "out", "--ray", "--workers", 3]
    code, _, err = mobilevit("predict", photos, *options)
    assert code == 0, err
    assert created == [(3, "auto")]
    assert json.loads((tmp_path / "out" / "_summary").read_text())["images"] == 3
