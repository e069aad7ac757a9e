"""Commands and code of the README run as written, except installation, tests and benchmarks."""

import re

import pytest
import torch
from doc_blocks import ROOT, find_blocks, find_commands, run_command, run_python
from hub_server import HubServer
from huggingface_hub import HfApi, constants
from transformers import MobileViTImageProcessor

from mobilevit_hf import MobileViTConfig, MobileViTForImageClassification
from mobilevit_hf.samples import draw_smear

README = (ROOT / "README.md").read_text(encoding="utf-8")
DEFAULT_MODEL = "apple/mobilevit-xx-small"


def test_installation_and_test_commands():
    assert "pip install . && mobilevit predict\n" in README
    assert "pip install -e '.[test]' && pytest\n" in README


def test_benchmark_scripts_exist():
    for name in re.findall(
        r"python (benchmarks/\S+\.py)", README + (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    ):
        assert (ROOT / name).is_file()


def test_readme_is_short():
    assert len(README.split()) <= 900


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, image):
    """Folder with the photos that the README names, and the environment of a machine with a Hub."""
    folder = tmp_path_factory.mktemp("readme")
    image.save(folder / "photo.jpg")
    draw_smear().save(folder / "smear.jpg")
    for angle, name in ((0, "cat"), (5, "dog")):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(3):
            image.rotate(10 * number + angle).save(folder / "photos" / name / f"{name}-{number}.jpg")
    model = MobileViTForImageClassification(MobileViTConfig.from_variant("xxs", num_labels=1000))
    model.save_pretrained(folder / "published")
    MobileViTImageProcessor().save_pretrained(folder / "published")
    with pytest.MonkeyPatch.context() as patch, HubServer() as hub:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo(DEFAULT_MODEL)
        api.upload_folder(repo_id=DEFAULT_MODEL, folder_path=folder / "published")
        path = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
        yield folder, hub.environment(folder / "home") | path


@pytest.mark.slow
@pytest.mark.parametrize("block", find_blocks("README.md", "bash"))
def test_commands_run_one_after_the_other(workspace, block):
    for words in find_commands(block):
        run_command(words, *workspace)


@pytest.mark.slow
@pytest.mark.parametrize("code", find_blocks("README.md", "python"))
def test_code(workspace, code):
    assert "score" in run_python(["-c", code], *workspace)
