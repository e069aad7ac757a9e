"""What a conversion writes wherever a checkpoint comes from, names of classes, and a clear error for what is none."""

import argparse
import email.message
import io
import os
import pickle
import urllib.request
import urllib.response

import pytest
import timm
import torch
import transformers
from formula import timm_model
from safetensors.torch import load_file, save_file

from mobilevit_hf.convert import conversion
from mobilevit_hf.convert.conversion import convert_checkpoint

# --- what is written -------------------------------------------------------------------------------------------------


def test_output_appears_whole_or_not_at_all(official_classifier, out, monkeypatch):
    def fail(self, folder):
        assert not out.exists()
        raise OSError("disk full")

    monkeypatch.setattr(transformers.MobileViTImageProcessor, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        convert_checkpoint(official_classifier, out)
    assert list(out.parent.iterdir()) == []


def test_output_may_be_an_empty_directory_or_deep(official_classifier, out):
    out.mkdir()
    convert_checkpoint(official_classifier, out)
    convert_checkpoint(official_classifier, out.parent / "a/b")
    for folder in (out, out.parent / "a/b"):
        files = {"config.json", "model.safetensors", "preprocessor_config.json"}
        assert {file.name for file in folder.iterdir()} == files
        assert {file.name for file in folder.parent.iterdir()} <= {"out", "a", "b"}


def test_the_random_state_is_left_alone(official_classifier, out):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    convert_checkpoint(official_classifier, out)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"state_dict": weights, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda weights: {"model": weights},
        lambda weights: {"model_state_dict": {f"module.{key}": value for key, value in weights.items()}},
        lambda weights: {"state_dict": {f"_orig_mod.module.{key}": value for key, value in weights.items()}},
        lambda weights: {"state_dict": {f"model.{key}": value for key, value in weights.items()}},
        lambda weights: {"model": {"state_dict": weights}},
        lambda weights: {key: value.half() if value.is_floating_point() else value for key, value in weights.items()},
    ],
    ids=["state_dict", "model", "ddp", "compiled", "lightning", "nested", "half"],
)
def test_wrapped_checkpoints(timm_file, tmp_path, out, wrap):
    weights = torch.load(timm_file)
    torch.save(wrap(weights), tmp_path / "wrapped.pt")
    convert_checkpoint(tmp_path / "wrapped.pt", out)
    written = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(written["classifier.weight"], weights["head.fc.weight"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema", "ema_state_dict"])
def test_averaged_weights_are_preferred_and_said(timm_file, tmp_path, out, key):
    weights = torch.load(timm_file)
    average = torch.optim.swa_utils.AveragedModel(timm.create_model("mobilevit_xxs", num_classes=5)).state_dict()
    average |= {f"module.{name}": value for name, value in weights.items()}
    torch.save({"model": {name: value * 0 for name, value in weights.items()}, key: average}, tmp_path / "ema.pt")
    report = convert_checkpoint(tmp_path / "ema.pt", out)
    assert report.ignored == ("n_averaged",)
    assert any(f"EMA) weights that the file holds under '{key}'" in note for note in report.notes)
    assert torch.equal(load_file(out / "model.safetensors")["classifier.weight"], weights["head.fc.weight"])


# --- labels ----------------------------------------------------------------------------------------------------------


def test_labels_from_a_file(timm_file, tmp_path, out):
    names = ["Corn Blight", "Ärger", "c", "d", "e"]
    (tmp_path / "labels.txt").write_text("\n".join(names) + "\n", encoding="utf-8-sig")
    report = convert_checkpoint(timm_file, out, labels=str(tmp_path / "labels.txt"))
    assert not any("LABEL_" in note for note in report.notes)
    config = transformers.MobileViTConfig.from_pretrained(out)
    assert config.id2label == dict(enumerate(names))
    assert config.label2id == {name: i for i, name in enumerate(names)}


def test_unknown_labels_are_numbered_and_said(timm_file, out):
    report = convert_checkpoint(timm_file, out)
    assert any("LABEL_0 to LABEL_4" in note for note in report.notes)
    assert transformers.MobileViTConfig.from_pretrained(out).id2label[4] == "LABEL_4"


def test_imagenet_labels(tmp_path, out):
    torch.save(timm_model(num_classes=1000).state_dict(), tmp_path / "model.pth")
    assert any(
        "--labels imagenet-1k" in note
        for note in convert_checkpoint(tmp_path / "model.pth", out.with_name("unnamed")).notes
    )
    convert_checkpoint(tmp_path / "model.pth", out, labels="imagenet-1k")
    names = transformers.MobileViTConfig.from_pretrained(out).id2label
    assert (len(names), names[0], names[207], names[999]) == (1000, "tench", "golden retriever", "toilet tissue")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\nc\n", "got 3 names, expected 5"),
        ("a\nb\nc\nd\ne\nf\n", "got 6 names, expected 5"),
        ("a\nb\n\nd\ne\n", "name 3 of 5 is empty"),
        ("a\nb\nc\nd\n  \n", "name 5 of 5 is empty"),
        ("a\nb\na\nb\ne\n", "a, b given more than once"),
        ("", "got no names"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
    ],
)
def test_wrong_label_files(timm_file, tmp_path, out, text, message):
    (tmp_path / "labels.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(timm_file, out, labels=tmp_path / "labels.txt")
    assert not out.exists()


def test_wrong_labels(timm_file, tmp_path, out):
    with pytest.raises(FileNotFoundError, match=r"labels: no file .*imagenet-2k"):
        convert_checkpoint(timm_file, out, labels="imagenet-2k")
    with pytest.raises(ValueError, match="got 1000 names, expected 5"):
        convert_checkpoint(timm_file, out, labels="imagenet-1k")
    with pytest.raises(ValueError, match="got 3, expected text"):
        convert_checkpoint(timm_file, out, labels=["a", "b", 3, "d", "e"])
    torch.save(timm_model(num_classes=0).state_dict(), tmp_path / "backbone.pth")
    with pytest.raises(ValueError, match="2 names for a backbone without a classifier"):
        convert_checkpoint(tmp_path / "backbone.pth", out, labels=["a", "b"])


# --- errors ----------------------------------------------------------------------------------------------------------


class CodeThatRuns:
    """Unpickling it would make the folder."""

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
def test_files_without_mobilevit(tmp_path, out, content, message):
    file = tmp_path / "file.pt"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(file, out)
    assert not out.exists()


def test_dicts_in_circles_are_refused(tmp_path, out):
    circle = {}
    circle["model"] = circle
    torch.save(circle, tmp_path / "circle.pt")
    with pytest.raises(ValueError, match="No state dict found"):
        convert_checkpoint(tmp_path / "circle.pt", out)


def test_damaged_safetensors(tmp_path, out):
    (tmp_path / "model.safetensors").write_text("text")
    with pytest.raises(ValueError, match=r"model\.safetensors: not a safetensors file"):
        convert_checkpoint(tmp_path / "model.safetensors", out)


def save_bare_pickle(content, file):
    file.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [torch.save, save_bare_pickle])
def test_pickled_code_is_refused_and_never_runs(tmp_path, out, save):
    trace = tmp_path / "made by the checkpoint"
    save({"state_dict": {}, "x": CodeThatRuns(trace)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=rf"pickled Python code or objects \({os.name}\.mkdir\).*never loaded"):
        convert_checkpoint(tmp_path / "x.pt", out)
    assert not trace.exists()


def test_pickled_objects_are_refused_with_the_way_out(timm_file, tmp_path, out):
    torch.save({"state_dict": torch.load(timm_file), "args": argparse.Namespace(lr=0.1)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"\(argparse\.Namespace\).*torch\.save\(model\.state_dict\(\), file\)"):
        convert_checkpoint(tmp_path / "x.pt", out)


def save_changed(file, target, change):
    weights = torch.load(file)
    change(weights)
    torch.save(weights, target)
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.update({f"extra.{i}": torch.ones(1) for i in range(6)}),
            r"6 of the checkpoint's parameters have no place in a MobileViT: extra\.0, extra\.1, .* and 2 more",
        ),
        (lambda w: w.pop("stages.2.1.norm.bias"), r"lacks 1 of the model's parameters: mobilevit\..*layernorm\.bias"),
        (lambda w: w.pop("final_conv.bn.running_mean"), "lacks 1 .*conv_1x1_exp.normalization.running_mean"),
        (lambda w: w.pop("stem.conv.weight"), r"no usable mobilevit\.conv_stem\.convolution\.weight"),
        (lambda w: w.pop("head.fc.weight"), r"no usable classifier\.weight"),
        (
            lambda w: w.update({"stages.3.1.conv_1x1.weight": torch.ones(88, 64, 1, 1)}),
            r"widths fit no MobileViT: got \[16, 16, 24, 48, 64, 80\] and \[64, 88, 96\], expected xxs \[16, 16, 24",
        ),
        (
            lambda w: w.update({"final_conv.conv.weight": torch.ones(640, 80, 1, 1)}),
            r"final_conv\.conv\.weight: got shape \(640, 80, 1, 1\), expected \(320, 80, 1, 1\)",
        ),
        (
            lambda w: w.update({"head.fc.bias": torch.ones(5, dtype=torch.int8)}),
            r"head\.fc\.bias: got torch\.int8, expected floating point",
        ),
        (
            lambda w: w.update({"stages.2.1.transformer.0.attn.qkv.weight": torch.ones(190, 64)}),
            r"attn\.qkv\.weight: got shape \(190, 64\), expected query, key and value in thirds",
        ),
        (
            lambda w: w.update({"module.stem.conv.weight": w["stem.conv.weight"]}),
            r"module\.stem\.conv\.weight: a second tensor for stem\.conv\.weight",
        ),
        (
            lambda w: w.update({"mobilevit.conv_stem.convolution.weight": w["stem.conv.weight"]}),
            r"a second tensor for mobilevit\.conv_stem\.convolution\.weight",
        ),
    ],
)
def test_state_dicts_that_do_not_fit(timm_file, tmp_path, out, change, message):
    file = save_changed(timm_file, tmp_path / "changed.pth", change)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(file, out)
    assert list(tmp_path.iterdir()) == [file]


def test_every_official_parameter_counts(official_segmenter, tmp_path, out):
    """Strict in both directions: no parameter may be left out and none may be added, wherever it is."""
    weights = torch.load(official_segmenter)
    for key in list(weights)[::40]:
        for change in (lambda w, key=key: w.pop(key), lambda w, key=key: w.update({key + "_2": w[key]})):
            file = save_changed(official_segmenter, tmp_path / "changed.pt", change)
            with pytest.raises(ValueError, match=r"lacks [13] of|no usable|1 of .* have no place"):
                convert_checkpoint(file, out)


def test_missing_sources(tmp_path, out):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt: no such file or directory"):
        convert_checkpoint(tmp_path / "nowhere.pt", out)
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        convert_checkpoint(tmp_path, out)


def test_occupied_output_is_refused_before_anything_else(tmp_path, out):
    out.mkdir()
    (out / "precious.txt").write_text("keep me")
    for target, message in ((out, "is not empty"), (out / "precious.txt", "is a file")):
        with pytest.raises(ValueError, match=f"output directory {message}.*Name a new one"):
            convert_checkpoint(tmp_path / "nowhere.pt", target)
    assert (out / "precious.txt").read_text() == "keep me"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"channel_order": "gbr"}, "channel_order: got 'gbr', expected 'bgr' or 'rgb'"),
        ({"image_size": 0}, "image_size: got 0"),
        ({"image_size": "256"}, "image_size: got '256'"),
    ],
)
def test_wrong_options(timm_file, out, option, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(timm_file, out, **option)


# --- URLs ------------------------------------------------------------------------------------------------------------


class Site(urllib.request.BaseHandler):
    """Answers https:// requests from a dict of URL → (status, headers, body)."""

    handler_order = 1

    def __init__(self, pages):
        self.pages = pages

    def https_open(self, request):
        status, headers, body = self.pages.get(request.full_url, (404, {}, b""))
        message = email.message.Message()
        for name, value in headers.items():
            message[name] = value
        response = urllib.response.addinfourl(io.BytesIO(body), message, request.full_url, status)
        response.msg = "Not Found" if status == 404 else "OK"
        return response


@pytest.fixture
def site(monkeypatch):
    pages = {}
    monkeypatch.setattr(conversion, "_opener", urllib.request.build_opener(conversion._HttpsRedirects, Site(pages)))
    return pages


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_download(site, timm_file, tmp_path, out, suffix):
    body = timm_file.read_bytes()
    if suffix == ".safetensors":
        save_file(torch.load(timm_file), tmp_path / "model.safetensors")
        body = (tmp_path / "model.safetensors").read_bytes()
    site[f"https://host/start{suffix}"] = (302, {"Location": f"https://other/model{suffix}"}, b"")
    site[f"https://other/model{suffix}"] = (200, {"Content-Length": str(len(body))}, body)
    report = convert_checkpoint(f"https://host/start{suffix}", out)
    assert (report.origin, report.num_labels) == ("timm", 5)
    transformers.MobileViTForImageClassification.from_pretrained(out)


def test_refused_urls(site, timm_file, out, monkeypatch):
    body = timm_file.read_bytes()
    site["https://host/downgrade.pth"] = (302, {"Location": "http://host/model.pth"}, b"")
    site["https://host/short.pth"] = (200, {"Content-Length": str(len(body) + 1)}, body)
    site["https://host/large.pth"] = (200, {}, body)
    site["https://host/page.pth"] = (200, {}, b"<!doctype html>")
    for url, message in {
        "http://host/model.pth": "got http://, expected https://",
        "ftp://host/model.pth": "got ftp://, expected https://",
        f"file://{timm_file}": "got file://, expected https://",
        "https://host/nothing.pth": "could not be downloaded.*404.*Check the URL",
        "https://host/downgrade.pth": "could not be downloaded.*which is not https",
        "https://host/short.pth": f"broke off after {len(body)} of {len(body) + 1} bytes",
        "https://host/page.pth": "not a PyTorch checkpoint",
    }.items():
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(url, out)
    monkeypatch.setattr(conversion, "MAX_DOWNLOAD_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        convert_checkpoint("https://host/large.pth", out)
    assert not out.exists()
