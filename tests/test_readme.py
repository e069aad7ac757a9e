"""Commands and code of the README run as written, except installation, tests and benchmarks."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from formula import formula_state_dict
from hub_server import HubServer
from huggingface_hub import HfApi, constants
from transformers import MobileViTImageProcessor

from mobilevit_hf import (
    MobileViTConfig,
    MobileViTForImageClassification,
    MobileViTSSDLiteConfig,
    MobileViTSSDLiteForObjectDetection,
    MobileViTSSDLiteImageProcessor,
)
from mobilevit_hf.samples import draw_smear

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DEFAULT_MODEL = "apple/mobilevit-xx-small"


def blocks(language):
    """Return the fenced code blocks of a language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def commands():
    """Return the README's commands, without those that install, test or benchmark."""
    lines = [line for block in blocks("bash") for line in block.splitlines() if line]
    parts = [part for line in lines for part in line.split(" && ")]
    return [part for part in parts if not part.startswith(("pip install", "pytest", "python benchmarks/"))]


def test_installation_and_test_commands():
    assert "pip install . && mobilevit predict\n" in README
    assert "pip install -e '.[test]' && pytest\n" in README


def test_benchmark_scripts_exist():
    for name in re.findall(r"python (benchmarks/\S+\.py)", README + (ROOT / "docs/benchmarks.md").read_text()):
        assert (ROOT / name).is_file()


def test_files_of_the_layout_exist():
    package, _, rest = next(block for block in blocks("") if "mobilevit_hf/" in block).partition("benchmarks/")
    for name in re.findall(r"^  ([\w./]+)  ", package, re.MULTILINE):
        assert (ROOT / "mobilevit_hf" / name).exists(), name
    assert (ROOT / "benchmarks").is_dir()
    for name in re.findall(r"\w+\.py", rest):
        assert (ROOT / "tests" / name).is_file(), name


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, image):
    """Folder with the files that the README names, and the environment of a machine with a Hub."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "photos").mkdir()
    image.save(folder / "photo.jpg")
    draw_smear().save(folder / "smear.jpg")
    image.save(folder / "photos" / "a.jpg")

    model = MobileViTForImageClassification(MobileViTConfig.from_variant("xxs", num_labels=1000))
    detector = MobileViTSSDLiteForObjectDetection(MobileViTSSDLiteConfig.from_variant("xxs", num_labels=80))
    for network in (model, detector):
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        network.load_state_dict(formula_state_dict(shapes))
    for angle, name in ((0, "cat"), (5, "dog")):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(3):
            image.rotate(10 * number + angle).save(folder / "images" / name / f"{name}-{number}.png")
    MobileViTForImageClassification(
        MobileViTConfig.from_variant("xxs", id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    ).save_pretrained(folder / "my-model")
    MobileViTImageProcessor().save_pretrained(folder / "my-model")
    torch.save(model.state_dict(), folder / "mobilevit_xxs.pt")
    torch.save(detector.state_dict(), folder / "mobilevit_ssdlite_xxs.pt")
    model.save_pretrained(folder / "published")
    MobileViTImageProcessor().save_pretrained(folder / "published")
    detector.save_pretrained(folder / "my-detector")
    MobileViTSSDLiteImageProcessor().save_pretrained(folder / "my-detector")
    with pytest.MonkeyPatch.context() as patch, HubServer() as hub:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo(DEFAULT_MODEL)
        api.upload_folder(repo_id=DEFAULT_MODEL, folder_path=folder / "published")
        path = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
        yield folder, hub.environment(folder / "home") | path


def run(workspace, *command):
    if any("openvino" in word for word in command):
        pytest.importorskip("openvino")
        pytest.importorskip("onnxscript")
    folder, environment = workspace
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_command(workspace, command):
    program, *arguments = shlex.split(command)
    assert program == "mobilevit"
    assert run(workspace, sys.executable, "-m", "mobilevit_hf", *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("python"))
def test_code(workspace, code):
    assert ("score" in run(workspace, sys.executable, "-c", code)) == ("print(" in code)
