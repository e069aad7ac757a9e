"""Shared fixtures: no network, a share of the cores per worker, clean processes, tiny checkpoints."""

import ipaddress
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# huggingface_hub reads these when it is imported. Subprocesses inherit them.
os.environ |= {f"HF_HUB_DISABLE_{switch}": "1" for switch in ("XET", "TELEMETRY", "UPDATE_CHECK", "PROGRESS_BARS")}

import numpy as np
import pytest
import torch
from formula import fill, formula_image
from hub_server import TOKEN, HubServer
from PIL import Image
from toy_checkpoints import save_classifier
from transformers import MobileViTImageProcessor

import mobilevit_hf
from mobilevit_hf import cli

PACKAGE_PARENT = Path(mobilevit_hf.__file__).parents[1]
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))

torch.set_num_threads(min(torch.get_num_threads(), max(1, (os.cpu_count() or 1) // WORKERS)))


@pytest.fixture(scope="session", autouse=True)
def _loopback_only():
    """Refuse to resolve other hosts: a test that needs the network fails at once."""
    getaddrinfo = socket.getaddrinfo

    def loopback_getaddrinfo(host, *args, **kwargs):
        name = host.decode() if isinstance(host, bytes) else host or "localhost"
        if name != "localhost" and not _is_loopback(name):
            raise OSError(f"tests have no network access: got {name}")
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", loopback_getaddrinfo)
        yield


def _is_loopback(name):
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


@pytest.fixture(scope="session")
def reference_data():
    """Folder of large reference data; tests skip without it."""
    folder = os.environ.get("MOBILEVIT_TEST_DATA")
    if folder is None:
        pytest.skip("needs the folder MOBILEVIT_TEST_DATA")
    return Path(folder)


@pytest.fixture(scope="session")
def run_python(tmp_path_factory):
    """Function that runs code in a clean process and an empty folder, and returns its standard output.

    The process is offline, unless `env` is a complete environment, such as `HubServer.environment`. In a process
    `without_package`, this package can't be imported. `quiet` asserts that standard error is empty.
    """

    def run(code, env=None, *, without_package=False, quiet=False):
        folder = tmp_path_factory.mktemp("process")
        env = env or os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "huggingface")}
        setup = "import sys\n"
        setup += 'sys.modules["mobilevit_hf"] = None\n' if without_package else ""
        setup += "" if without_package else f"sys.path.insert(0, {str(PACKAGE_PARENT)!r})\n"
        process = subprocess.run(
            [sys.executable, "-I", "-c", setup + textwrap.dedent(code)],
            env=env | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        # torch warns about torchao, if that is installed, when stock transformers imports it.
        lines = [line for line in process.stderr.splitlines() if "torch/utils/_pytree.py" not in line]
        assert not (quiet and lines), process.stderr
        return process.stdout

    return run


@pytest.fixture(scope="session")
def image():
    """Photo-like RGB image, 96x128."""
    values = formula_image(96, 128)[0].permute(1, 2, 0).numpy()
    values[20:50, 30:60] = (0.9, 0.2, 0.1)
    return Image.fromarray((values * 255).round().astype(np.uint8))


@pytest.fixture
def two_torch_threads():
    """Set torch's number of threads in the main thread to two during a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_fields():
    """Fields of a tiny MobileViT configuration with four classes."""
    return {
        "image_size": 64,
        "hidden_sizes": [8, 12, 16],
        "neck_hidden_sizes": [4, 8, 8, 8, 12, 16, 24],
        "num_attention_heads": 2,
        "expand_ratio": 1.0,
        "aspp_out_channels": 8,
        "id2label": {0: "cat", 1: "dog", 2: "fish", 3: "owl"},
        "label2id": {"cat": 0, "dog": 1, "fish": 2, "owl": 3},
    }


@pytest.fixture(scope="session")
def tiny_model(tiny_fields):
    """Function that returns a tiny model in evaluation mode, with distinct parameters and statistics."""

    def make(model_class, **fields):
        return fill(model_class(model_class.config_class(**tiny_fields | fields))).eval()

    return make


@pytest.fixture(scope="session")
def checkpoints(tiny_model, tmp_path_factory):
    """Folders with a saved tiny model and its image processor, by task."""
    folder = tmp_path_factory.mktemp("checkpoints")
    models = {
        "image-classification": tiny_model(mobilevit_hf.MobileViTForImageClassification),
        "image-segmentation": tiny_model(mobilevit_hf.MobileViTForSemanticSegmentation, output_stride=16),
        "image-feature-extraction": tiny_model(mobilevit_hf.MobileViTModel),
    }
    processor = MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})
    for task, model in models.items():
        model.save_pretrained(folder / task)
        processor.save_pretrained(folder / task)
    return {task: folder / task for task in models}


@pytest.fixture(scope="session")
def segmenter_dir(tiny_model, image, tmp_path_factory):
    """Folder with a saved tiny segmentation model and its image processor; each class is on some part of `image`."""
    folder = tmp_path_factory.mktemp("segmenter")
    model = tiny_model(mobilevit_hf.MobileViTForSemanticSegmentation, output_stride=16)
    processor = MobileViTImageProcessor(size={"height": 64, "width": 96}, do_center_crop=False)
    with torch.no_grad():
        logits = model(**processor(image, return_tensors="pt")).logits
        model.segmentation_head.classifier.convolution.bias -= logits.mean(dim=(0, 2, 3))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def detector_dir(tiny_fields, tmp_path_factory):
    """Folder with a saved tiny detector of four classes and its image processor; boxes and scores differ."""
    fields = dict(tiny_fields)
    names = {name: fields.pop(name) for name in ("id2label", "label2id")}
    config = mobilevit_hf.MobileViTSSDLiteConfig(backbone_config=fields, image_size=64, **names)
    model = fill(mobilevit_hf.MobileViTSSDLiteForObjectDetection(config))
    processor = mobilevit_hf.MobileViTSSDLiteImageProcessor(
        size={"height": 64, "width": 64}, do_flip_channel_order=True
    )
    folder = tmp_path_factory.mktemp("detector")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def mobilevit(monkeypatch, capfd):
    """Function that runs the command in this process and returns exit code, standard output and standard error."""
    for command in ("predict", "evaluate", "train"):  # would change the whole test process
        monkeypatch.setattr(f"mobilevit_hf.cli.{command}.tune_allocator", lambda: True)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mobilevit", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capfd.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return end.value.code, captured.out, captured.err

    return run


@pytest.fixture
def served_file(tmp_path):
    """Function that serves a file by HTTP on the loopback interface and returns its URL."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()

        def serve(name, data):
            (folder / name).write_bytes(data)
            return f"http://127.0.0.1:{server.server_port}/{name}"

        yield serve
        server.shutdown()
        thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without logging to stderr."""

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def initial_checkpoint(tiny_fields, tmp_path_factory):
    """Folder with a saved tiny classifier of two classes with random weights, and its image processor."""
    return save_classifier(tmp_path_factory.mktemp("initial_checkpoint"), 72, 64, tiny_fields)


@pytest.fixture
def classifier_dir(checkpoints, tmp_path):
    """Copy of the folder of the tiny classifier, which a test may modify."""
    return Path(shutil.copytree(checkpoints["image-classification"], tmp_path / "classifier"))


@pytest.fixture
def overflowing_dir(classifier_dir):
    """Folder with a classifier with finite weights whose first convolution overflows unless an image is black."""
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(classifier_dir)
    stem = model.mobilevit.conv_stem
    stem.normalization.reset_parameters()
    torch.nn.init.constant_(stem.convolution.weight, torch.finfo(torch.float32).max / 10)
    model.save_pretrained(classifier_dir)
    return classifier_dir


@pytest.fixture(scope="module")
def site_url(site):
    """URL of the folder `site`, with transformers.js and the programs that run it."""
    from transformers_js.programs import serve_site

    with serve_site(site) as url:
        yield url


@pytest.fixture
def hub(monkeypatch):
    """Hub on the loopback interface that `huggingface_hub` in this process uses, with `TOKEN`."""
    with HubServer(token=TOKEN) as server:
        server.patch_client(monkeypatch)
        yield server
