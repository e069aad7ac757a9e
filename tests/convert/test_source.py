"""Reading weights and configurations: no code is executed, downloads are limited, invalid files raise."""

import argparse
import datetime
import json
import os
import pickle
import socket
import sys
import threading
from collections import defaultdict, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import get_session
from safetensors.torch import save_file
from source_checkpoints import stock_model

from mobilevit_hf.convert import source
from mobilevit_hf.convert.conversion import convert_checkpoint


def test_missing_sources_raise(tmp_path, output_dir):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt: no such file or directory"):
        convert_checkpoint(tmp_path / "nowhere.pt", output_dir)
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        convert_checkpoint(tmp_path, output_dir)


class DirectoryMaker:
    """Object that creates a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"just some text\n", "not a PyTorch checkpoint, or a damaged one"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a PyTorch checkpoint"),
        (b"", "not a PyTorch checkpoint"),
        (b"PK\x03\x04 cut off", "not a PyTorch checkpoint"),
        ({}, "No state dict found: got dict"),
        ([torch.ones(1)], "No state dict found: got list"),
        ({"epoch": 3, "weights": "lost"}, "No state dict found: got epoch, weights, expected names and tensors"),
        ({"fc.weight": torch.ones(2, 2)}, r"No MobileViT weights found: got names such as fc\.weight"),
    ],
)
def test_files_without_mobilevit_weights_raise(tmp_path, output_dir, content, message):
    file = tmp_path / "file.pt"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(file, output_dir)
    assert not output_dir.exists()


def test_damaged_safetensors_raise(tmp_path, output_dir):
    (tmp_path / "model.safetensors").write_text("text")
    with pytest.raises(ValueError, match=r"model\.safetensors: not a safetensors file"):
        convert_checkpoint(tmp_path / "model.safetensors", output_dir)


def save_bare_pickle(content, file):
    file.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [torch.save, save_bare_pickle])
def test_pickled_code_is_not_executed(tmp_path, output_dir, save):
    created = tmp_path / "created"
    save({"state_dict": {}, "x": DirectoryMaker(created)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=rf"pickled Python code or objects \({os.name}\.mkdir\).*never loaded"):
        convert_checkpoint(tmp_path / "x.pt", output_dir)
    assert not created.exists()


class Settings:
    """Class of a training script."""


def test_pickled_objects_of_other_classes_raise_with_instructions(timm_file, tmp_path, output_dir):
    torch.save({"state_dict": torch.load(timm_file), "args": Settings()}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"\S*test_source\.Settings\).*torch\.save\(model\.state_dict\(\), file\)"):
        convert_checkpoint(tmp_path / "x.pt", output_dir)


@pytest.mark.parametrize(
    "entries",
    [
        {"epoch": 3, "arch": "mobilevit_xxs", "args": argparse.Namespace(lr=0.1, out=Path("runs")), "metric": 91.5},
        {"best_acc1": np.float64(91.5), "history": np.ones(3), "rng": np.random.get_state()},
        {"seen": defaultdict(list, {"a": [1]}), "queue": deque([1, 2]), "date": datetime.datetime(2026, 1, 1)},
    ],
)
def test_objects_of_training_scripts_are_ignored(timm_file, tmp_path, output_dir, entries):
    torch.save({**entries, "state_dict": torch.load(timm_file)}, tmp_path / "last.pth.tar")
    assert convert_checkpoint(tmp_path / "last.pth.tar", output_dir).num_labels == 5


# --- config.json and preprocessor_config.json ------------------------------------------------------------------------


def test_configuration_of_another_model_next_to_timm_file_is_ignored(timm_file, tmp_path, output_dir):
    (tmp_path / "model.pth").write_bytes(timm_file.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "vit", "input_size": [3, 64, 64], "label_names": ["a"]}')
    convert_checkpoint(tmp_path / "model.pth", output_dir)
    config = transformers.MobileViTConfig.from_pretrained(output_dir)
    assert (config.image_size, config.num_labels) == (256, 5)


def test_code_pointers_are_removed(tmp_path, output_dir):
    stock_model().save_pretrained(tmp_path / "stock")
    config = json.loads((tmp_path / "stock/config.json").read_text())
    config["auto_map"] = {"AutoModelForImageClassification": "custom.Custom"}
    (tmp_path / "stock/config.json").write_text(json.dumps(config))
    convert_checkpoint(tmp_path / "stock", output_dir)
    assert "auto_map" not in json.loads((output_dir / "config.json").read_text())


def test_code_next_to_stock_weights_is_not_executed(tmp_path, output_dir):
    stock_model().save_pretrained(tmp_path / "stock")
    processor = {"auto_map": {"AutoImageProcessor": "custom.Custom"}, "image_processor_type": "Custom"}
    (tmp_path / "stock/preprocessor_config.json").write_text(json.dumps(processor))
    (tmp_path / "stock/custom.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'created')!r})\n")
    with pytest.raises(ValueError, match="not a stock image processor") as error:
        convert_checkpoint(tmp_path / "stock", output_dir)
    assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"stock"}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", r"config\.json: can't be read"),
        ("config.json", "[]", "got list, expected a JSON object"),
        ("config.json", '{"model_type": "vit"}', "got model_type 'vit', expected 'mobilevit'"),
        (
            "config.json",
            '{"model_type": "mobilevit", "hidden_sizes": 5}',
            "config.json next to the weights: invalid",
        ),
        ("config.json", '{"model_type": "mobilevit"}', "got 2 labels, expected 3"),
        ("config.json", '{"model_type": "mobilevit", "id2label": {"0": 1, "1": 2, "2": 3}}', r"got shape .* expected"),
        ("preprocessor_config.json", "{", r"preprocessor_config\.json: not a stock image processor"),
        ("preprocessor_config.json", '{"image_processor_type": "Custom"}', "not a stock image processor"),
        ("preprocessor_config.json", '{"image_processor_type": "BitImageProcessor"}', "BitImageProcessor can't flip"),
    ],
)
def test_invalid_stock_configurations_raise(tmp_path, output_dir, file, content, message):
    stock_model().save_pretrained(tmp_path / "stock")
    (tmp_path / "stock" / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / "stock", output_dir, channel_order="bgr" if "Bit" in content else None)
    assert not output_dir.exists()


# --- downloads -------------------------------------------------------------------------------------------------------


class PageHandler(BaseHTTPRequestHandler):
    """Serves `pages` of the server, a dict of path → (status, headers, body)."""

    def do_GET(self):
        status, headers, body = self.server.pages.get(self.path, (404, {}, b""))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """Loopback HTTP server with `pages` and `url`; downloads accept http instead of https."""
    monkeypatch.setattr(source, "URL_SCHEME", "http")
    with ThreadingHTTPServer(("127.0.0.1", 0), PageHandler) as server:
        server.pages, server.url = {}, f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_download_follows_redirect(server, timm_file, tmp_path, output_dir, suffix):
    body = timm_file.read_bytes()
    if suffix == ".safetensors":
        save_file(torch.load(timm_file), tmp_path / "model.safetensors")
        body = (tmp_path / "model.safetensors").read_bytes()
    server.pages[f"/first{suffix}"] = (302, {"Location": f"/second{suffix}"}, b"")
    server.pages[f"/second{suffix}"] = (200, {"Content-Length": str(len(body))}, body)
    report = convert_checkpoint(f"{server.url}/first{suffix}", output_dir)
    assert (report.origin, report.num_labels) == ("timm", 5)
    transformers.MobileViTForImageClassification.from_pretrained(output_dir)


def test_download_time_is_limited(monkeypatch, output_dir):
    monkeypatch.setattr(source, "URL_SCHEME", "http")
    monkeypatch.setattr(source, "MAX_DOWNLOAD_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts connections, but never answers
        url = f"http://127.0.0.1:{server.getsockname()[1]}/model.pth"
        with pytest.raises(ValueError, match=r"download failed \(took more than 0\.1 s\)"):
            convert_checkpoint(url, output_dir)


@pytest.mark.parametrize("url", ["http://host/model.pth", "ftp://host/model.pth", "file:///model.pth"])
def test_other_schemes_than_https_raise(output_dir, url):
    with pytest.raises(ValueError, match=f"got {url.partition(':')[0]}://, expected https://"):
        convert_checkpoint(url, output_dir)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing.pth", "download failed .*404.*Check the URL"),
        ("/other_scheme.pth", "download failed .*redirected to ftp://host/model.pth, which is not http"),
        ("/circle.pth", "download failed .*more than 10 redirects"),
        ("/short.pth", "download failed .*without sending complete message body"),
        ("/large.pth", "download failed .*larger than 1 MiB"),
        ("/page.pth", "not a PyTorch checkpoint"),
        (":0x/model.pth", "download failed"),
    ],
)
def test_failed_downloads_raise(server, timm_file, output_dir, monkeypatch, path, message):
    body = timm_file.read_bytes()
    server.pages |= {
        "/other_scheme.pth": (302, {"Location": "ftp://host/model.pth"}, b""),
        "/circle.pth": (302, {"Location": "/circle.pth"}, b""),
        "/short.pth": (200, {"Content-Length": str(len(body) + 1)}, body),
        "/large.pth": (200, {}, body),
        "/page.pth": (200, {}, b"<!doctype html>"),
    }
    if path == "/large.pth":
        monkeypatch.setattr(source, "MAX_DOWNLOAD_BYTES", 1 << 20)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(server.url + path, output_dir)
    assert not output_dir.exists()


def test_redirect_from_https_to_http_raises(output_dir, monkeypatch):
    httpx = sys.modules[type(get_session()).__module__.partition(".")[0]]  # httpx2 in newer versions
    redirect = httpx.Response(302, headers={"Location": "http://host/model.pth"})
    client = httpx.Client(transport=httpx.MockTransport(lambda request: redirect))
    monkeypatch.setattr(source, "get_session", lambda: client)
    with pytest.raises(ValueError, match=r"redirected to http://host/model\.pth, which is not https"):
        convert_checkpoint("https://host/model.pth", output_dir)
