"""What all tests share: no network, a fair share of the cores, clean subprocesses, tiny checkpoints and datasets."""

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
from formula import fill, formula_image, formula_state_dict, official_shapes, timm_model
from hub_server import TOKEN, HubServer
from PIL import Image
from toy_datasets import CLASSES, draw_classification, draw_detection
from transformers import MobileViTImageProcessor
from dataset_files import make_images, save_image, write

import mobilevit_hf
from mobilevit_hf import cli

PACKAGE_PARENT = Path(mobilevit_hf.__file__).parents[1]
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))

torch.set_num_threads(min(torch.get_num_threads(), max(1, (os.cpu_count() or 1) // WORKERS)))


@pytest.fixture(scope="session", autouse=True)
def _loopback_only():
    """Refuse every host but this machine: a test that reaches for the network fails at once, and says so."""
    find_address = socket.getaddrinfo

    def find_loopback_address(host, *args, **kwargs):
        name = host.decode() if isinstance(host, bytes) else host or "localhost"
        if name != "localhost" and not _is_loopback(name):
            raise OSError(f"tests do not reach the network, and this one asked for {name}")
        return find_address(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", find_loopback_address)
        yield


def _is_loopback(name):
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


@pytest.fixture(scope="session")
def reference_data():
    """The folder of large reference data, for the tests that have it."""
    folder = os.environ.get("MOBILEVIT_TEST_DATA")
    if folder is None:
        pytest.skip("needs the folder MOBILEVIT_TEST_DATA")
    return Path(folder)


@pytest.fixture(scope="session")
def run_python(tmp_path_factory):
    """A function that runs code in a clean process, in a folder of its own, and returns what it prints.

    The process is off the Hub, unless `env` gives it a complete environment of its own (see
    `HubServer.environment`). `without_package` makes it one where this package is not installed. `quiet` also asserts
    that it writes nothing to stderr.
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
        # torchao, if it is installed, is remarked on by torch when stock transformers imports it.
        remarks = [line for line in process.stderr.splitlines() if "torch/utils/_pytree.py" not in line]
        assert not (quiet and remarks), process.stderr
        return process.stdout

    return run


@pytest.fixture(scope="session")
def image():
    """A photo-like RGB image, not square."""
    values = formula_image(96, 128)[0].permute(1, 2, 0).numpy()
    values[20:50, 30:60] = (0.9, 0.2, 0.1)
    return Image.fromarray((values * 255).round().astype(np.uint8))


@pytest.fixture(scope="session")
def tiny_fields():
    """Fields of a MobileViT configuration that make it small."""
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
    """A function that makes a tiny model, in evaluation mode, in which every parameter and statistic differs."""

    def make(model_class, **fields):
        return fill(model_class(model_class.config_class(**tiny_fields | fields))).eval()

    return make


@pytest.fixture(scope="session")
def checkpoints(tiny_model, tmp_path_factory):
    """Folders with a tiny model and its image processor as this package saves them, by pipeline task."""
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
def detector_dir(tiny_fields, tmp_path_factory):
    """A folder with a tiny detector of four classes and its image processor, whose boxes and scores differ."""
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
    """Run the command in this process; returns exit code, standard output and standard error."""
    for command in ("predict", "evaluate", "train"):  # a setting of the whole process, tested in a clean one
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
    """A function that serves one file by HTTP on the loopback interface and returns its URL."""
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
    """Serves files without a line for each on stderr."""

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def initial_checkpoint(tiny_fields, tmp_path_factory):
    """The folder of a tiny classifier of random weights and its image processor."""
    return save_start(tmp_path_factory.mktemp("start"), 72, 64, tiny_fields)


@pytest.fixture(scope="module")
def dropout_checkpoint(tiny_fields, tmp_path_factory):
    """The folder of a tiny classifier with dropout, of random weights, and its image processor."""
    dropout = {"hidden_dropout_prob": 0.1, "classifier_dropout_prob": 0.1}
    return save_start(tmp_path_factory.mktemp("start"), 96, 96, tiny_fields | dropout)


def save_start(folder, resize, crop, fields):
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    config = mobilevit_hf.MobileViTConfig(**fields | names)
    mobilevit_hf.MobileViTForImageClassification(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": resize}, "crop_size": {"height": crop, "width": crop}}
    MobileViTImageProcessor(**sizes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def small_datasets(tmp_path_factory):
    """A small dataset for each task; the validation images don't come out even."""
    folder = tmp_path_factory.mktemp("data")
    return {
        "image-classification": draw_classification(folder / "shapes", train=24, validation=9),
        "object-detection": draw_detection(folder / "boxes", train=12, validation=7),
    }


@pytest.fixture(scope="module")
def uneven_datasets(tmp_path_factory):
    """Two small datasets; their images don't come out even with batches of 4."""
    folder = tmp_path_factory.mktemp("data")
    return {
        "image-classification": draw_classification(folder / "classification", train=18, validation=6, side=96),
        "object-detection": draw_detection(folder / "detection", train=18, validation=6, side=96),
    }


@pytest.fixture(scope="module")
def make_arguments(uneven_datasets, dropout_checkpoint):
    """A function that makes the arguments of a short training."""
    from mobilevit_hf.training.arguments import TrainArguments

    def make(output_dir, task="image-classification", **changes):
        options = {
            "data": str(uneven_datasets[task]),
            "model": str(dropout_checkpoint),
            "output_dir": str(output_dir),
            "image_size": 96,  # progressively from 64
            "max_steps": 12,
            "per_device_train_batch_size": 4,
            "save_steps": 3,
            "eval_steps": 5,
            "logging_steps": 2,
            "learning_rate": 0.01,
            "ema_decay": 0.9,
            "dataloader_num_workers": 0,
            "use_cpu": True,
        }
        if task == "object-detection":
            options["anchors"] = "paper"
        return TrainArguments(**options | changes)

    return make


@pytest.fixture(scope="module")
def one_thread():
    """With another number of threads sums are rounded otherwise. Curves are not drawn, only their files made."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mobilevit_hf.visualization.plots.save_plot", lambda figure, path: path.touch())
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted_run(one_thread, make_arguments, tmp_path_factory):
    """The folder of a training that nothing interrupted."""
    from mobilevit_hf.training.trainer import train

    folder = tmp_path_factory.mktemp("whole")
    train(make_arguments(folder))
    return folder


@pytest.fixture
def no_plots(monkeypatch):
    """Nothing is drawn at the end, which takes longer than a few steps."""
    monkeypatch.setattr("mobilevit_hf.training.reports._draw", lambda *args: {})
    monkeypatch.setattr("mobilevit_hf.visualization.plots.save_plot", lambda figure, path: path.touch())


@pytest.fixture
def class_folders(tmp_path):
    """Three classes in train, val and test, with an image deeper down and things that are no images."""
    root = tmp_path / "data"
    for split, count in {"train": 3, "val": 2, "test": 1}.items():
        for name in ("owl", "Cat", "dog"):
            for number in range(count):
                save_image(root / split / name / f"{number}.jpg")
    write(root / "train" / "owl" / "notes.txt", "")
    write(root / "train" / "owl" / "._0.jpg", "what macOS leaves")
    return root


@pytest.fixture
def coco_dataset(tmp_path):
    """Two splits with sparse category ids, a crowd, areas of shapes and an image without boxes."""
    root = tmp_path / "coco"
    rng = np.random.default_rng(0)
    for split, count in {"train2017": 6, "val2017": 3}.items():
        content = {"images": [], "annotations": [], "categories": []}
        content["categories"] = [{"id": i, "name": name} for i, name in ((90, "brush"), (1, "person"), (13, "sign"))]
        for number in range(count):
            save_image(root / split / f"{number}.jpg", (60, 50))
            content["images"].append({"id": 100 - number, "file_name": f"{number}.jpg", "width": 60, "height": 50})
            for _ in range(number):
                bbox = [*rng.uniform(0, 20, 2).round(2), *rng.uniform(2, 25, 2).round(2)]
                entry = {"id": len(content["annotations"]) + 1, "image_id": 100 - number, "bbox": bbox}
                entry |= {"category_id": int(rng.choice([1, 13, 90])), "area": bbox[2] * bbox[3] / 2}
                content["annotations"].append(entry | {"iscrowd": int(rng.random() < 0.2)})
        write(root / "annotations" / f"instances_{split}.json", content)
    write(root / "annotations" / "captions_train2017.json", {"images": [], "annotations": []})
    return root


@pytest.fixture(scope="module")
def labeled_images(tmp_path_factory):
    """A folder for each class of the tiny classifier, with images of several kinds."""
    folder, names = tmp_path_factory.mktemp("labelled"), ("cat", "dog", "fish", "owl")
    for i, image in enumerate(make_images(30)):
        file = folder / names[i * i % 4 if i % 3 else i % 4] / f"{i}.{'jpg' if i % 2 else 'png'}"
        file.parent.mkdir(exist_ok=True)
        (image.rotate(90, expand=True) if i % 5 == 0 else image).save(file)
    return folder


@pytest.fixture(scope="session")
def official_classifier(tmp_path_factory):
    """An official XXS classifier with 10 classes."""
    file = tmp_path_factory.mktemp("official") / "cls.pt"
    torch.save(formula_state_dict(official_shapes("classification", 10)), file)
    return file


@pytest.fixture(scope="session")
def official_segmenter(tmp_path_factory):
    """An official XXS DeepLabv3 with 4 classes."""
    file = tmp_path_factory.mktemp("official") / "seg.pt"
    torch.save(formula_state_dict(official_shapes("segmentation", 4)), file)
    return file


@pytest.fixture(scope="session")
def timm_file(tmp_path_factory):
    """A timm classifier with 5 classes."""
    file = tmp_path_factory.mktemp("timm") / "model.pth"
    torch.save(timm_model().state_dict(), file)
    return file


@pytest.fixture
def output_dir(tmp_path):
    """Where a conversion may write."""
    return tmp_path / "out"


@pytest.fixture
def hub(monkeypatch):
    """A Hub on the loopback interface that `huggingface_hub` in this process talks to, with `TOKEN`."""
    with HubServer(token=TOKEN) as server:
        server.take_over(monkeypatch)
        yield server


@pytest.fixture
def messages():
    """A list for what is told to the user: pass its `append`."""
    return []


@pytest.fixture
def classifier_dir(checkpoints, tmp_path):
    """A folder of the test's own with a tiny classifier and its image processor."""
    return Path(shutil.copytree(checkpoints["image-classification"], tmp_path / "classifier"))


@pytest.fixture
def training_calls(monkeypatch, tmp_path):
    """In an empty folder, without training: a list that gets the arguments of what would have been trained."""
    from mobilevit_hf.training.state import TrainingResult

    trained = []

    def note(arguments, listener):
        trained.append(arguments)
        return TrainingResult(Path(arguments.output_dir), "accuracy", 0.5, 1, 1.0)

    monkeypatch.setattr("mobilevit_hf.training.trainer.train", note)
    monkeypatch.chdir(tmp_path)
    return trained
