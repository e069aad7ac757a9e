"""Metadata of model folders."""

import shutil

import pytest
from card_folders import write_model, write_run

from mobilevit_hf.hub import CardOptions, collect_metadata

MIT = CardOptions(license="mit")


def test_folder_without_a_mobilevit_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        collect_metadata(tmp_path, MIT)
    write_model(tmp_path / "other", architectures=["ViTForImageClassification"])
    with pytest.raises(ValueError, match="ViTForImageClassification"):
        collect_metadata(tmp_path / "other", MIT)


@pytest.mark.parametrize("name", ["model.safetensors", "results.json", "run.json", "config.json"])
def test_corrupt_file_is_named(name, tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / name).write_bytes(b"{")
    with pytest.raises(ValueError, match=name):
        collect_metadata(folder, MIT)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.json", "[1]", "got list"),
        ("run.json", '{"task": "image-classification"}', "got no command"),
        ("results.json", '{"metrics": {"accuracy": 1}}', "got no metric"),
        ("results.json", '{"metric": "accuracy", "metrics": {"accuracy": 1}}', "no split, num_images"),
        ("evaluation-test.json", '{"answer": 1}', "no split, num_images, metrics"),
        ("evaluation-test.json", "null", "got NoneType"),
    ],
)
def test_file_with_other_content_is_named(name, text, message, tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}.*{message}.*Remove"):
        collect_metadata(folder, MIT)


def test_copy_of_the_weights_is_not_counted(tmp_path):
    folder = write_model(tmp_path / "model")
    shutil.copy(folder / "model.safetensors", folder / "model-before.safetensors")
    metadata = collect_metadata(folder, MIT)
    assert (metadata.parameters, metadata.num_bytes) == (150_000, (folder / "model.safetensors").stat().st_size)


def test_options_take_precedence_over_records(tmp_path):
    options = CardOptions(license="mit", base_model="user/base", datasets=("user/data",))
    metadata = collect_metadata(write_run(tmp_path / "run"), options)
    assert (metadata.license.id, metadata.base_model, metadata.datasets) == ("mit", "user/base", ("user/data",))
    with pytest.raises(ValueError, match="user/base, whose license"):  # the recorded license is of another base model
        collect_metadata(tmp_path / "run", CardOptions(base_model="user/base"))
