"""Publication of the trained model."""

import shlex

import pytest
from huggingface_hub import HfApi
from toy_datasets import draw_classification

SHORT = ["--max-steps", "2", "--per-device-train-batch-size", "4", "--dataloader-num-workers", "0", "--use-cpu"]
SHORT += ["--image-size", "64"]


@pytest.fixture
def train_command(initial_checkpoint, tmp_path):
    data = draw_classification(tmp_path / "shapes", train=16, validation=8)
    return ["train", data, "--model", initial_checkpoint, "--output-dir", tmp_path / "run", *SHORT, "--push-to-hub"]


@pytest.mark.parametrize(
    ("options", "role", "message"),
    [
        ([], "write", "--license"),
        (["--license", "mit"], "read", "The token is read-only"),
        (["--license", "mit", "--hub-model-id", "apple/shapes"], "write", "user may not write to apple"),
        (["--license", "mit", "--hub-model-id", "a/b/c"], "write", "a/b/c"),
        (["--license", "mit", "--hub-model-id", "public", "--hub-private-repo"], "write", "user/public: got a public"),
    ],
)
def test_publication_is_checked_before_training(options, role, message, hub, train_command, mobilevit, tmp_path):
    hub.role = role
    HfApi().create_repo("public")
    code, _, err = mobilevit(*train_command, *options)
    assert code == 2
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_unlisted_license_is_doubted_before_the_data_is_read(hub, train_command, mobilevit):
    hub.role = "read"
    train_command[1] = "missing"
    code, _, err = mobilevit(*train_command, "--license", "apache2")
    assert code == 2
    assert "Did you mean apache-2.0?" in err.splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["image-classification", "object-detection", "image-segmentation"])
def test_trained_model_is_published(task, hub, small_datasets, train_command, mobilevit, tmp_path):
    train_command[1] = small_datasets[task]
    code, _, err = mobilevit(*train_command, "--license", "mit")
    assert code == 0, err
    files = hub.files("user/run")
    assert files["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert f"pipeline_tag: {task}" in files["README.md"].decode()


@pytest.mark.slow
def test_failed_publication_keeps_the_model(hub, train_command, mobilevit, tmp_path):
    hub.fail("POST", "/commit/", 403)
    code, _, err = mobilevit(*train_command, "--license", "mit", "--hub-private-repo", "--no-hub-images")
    line = err.splitlines()[-1]
    assert code == 2
    assert "The token may not write to user/run" in line
    assert hub.files("user/run") == {}
    command = shlex.split(line.partition("To publish it: mobilevit ")[2])
    assert command == ["publish", str(tmp_path / "run"), "user/run", "--license", "mit", "--private", "--no-images"]
    code, _, err = mobilevit(*command)
    assert code == 0, err
    assert hub.files("user/run")["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert not [name for name in hub.files("user/run") if name in ("mistakes.png", "samples.png")]
