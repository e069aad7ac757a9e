"""Translation of parameter names, and state dicts in wrappers."""

import json

import pytest
import timm
import torch
from formula import formula_state_dict, official_shapes
from safetensors.torch import load_file

from mobilevit_hf.convert.conversion import convert_checkpoint
from mobilevit_hf.convert.rules import translate

LEVELS = ["stride_16", "stride_32", "stride_64", "stride_128", "stride_256", "pooled"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"state_dict": weights, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda weights: {"model": weights},
        lambda weights: {"model_state_dict": {f"module.{key}": value for key, value in weights.items()}},
        lambda weights: {"state_dict": {f"_orig_mod.module.{key}": value for key, value in weights.items()}},
        lambda weights: {"state_dict": {f"model.{key}": value for key, value in weights.items()}},
        lambda weights: {"state_dict": {f"net.{key}": value for key, value in weights.items()}},
        lambda weights: {"state_dict": {f"model.backbone.{key}": value for key, value in weights.items()}},
        lambda weights: {"model": {key.replace("stages.", "stages._orig_mod."): weights[key] for key in weights}},
        lambda weights: {
            "state_dict": {f"model.{key}": value * 0 for key, value in weights.items()}
            | {f"model_ema.module.{key}": value for key, value in weights.items()}
        },
        lambda weights: {"model": {"state_dict": weights}},
        lambda weights: {
            "state_dict": {f"model.{key}": value for key, value in weights.items()}
            | {name: torch.ones(5) for name in ("criterion.weight", "val_acc.tp", "test_metrics.f1.tp")}
        },
        lambda weights: {key: value.half() if value.is_floating_point() else value for key, value in weights.items()},
    ],
    ids="state_dict model ddp compiled lightning net backbone compiled_part averaged_copy nested loss half".split(),  # noqa: SIM905
)
def test_wrapped_state_dicts_are_extracted(timm_file, tmp_path, output_dir, wrap):
    weights = torch.load(timm_file)
    torch.save(wrap(weights), tmp_path / "wrapped.pt")
    convert_checkpoint(tmp_path / "wrapped.pt", output_dir)
    written = load_file(output_dir / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(written["classifier.weight"], weights["head.fc.weight"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema", "ema_state_dict", "ema"])
def test_averaged_weights_are_preferred(timm_file, tmp_path, output_dir, key):
    weights = torch.load(timm_file)
    average = torch.optim.swa_utils.AveragedModel(timm.create_model("mobilevit_xxs", num_classes=5)).state_dict()
    average |= {f"module.{name}": value for name, value in weights.items()}
    torch.save({"model": {name: value * 0 for name, value in weights.items()}, key: average}, tmp_path / "ema.pt")
    report = convert_checkpoint(tmp_path / "ema.pt", output_dir)
    assert report.ignored == ("n_averaged",)
    assert any(f"averaged (EMA) weights of the file, saved under '{key}'" in note for note in report.notes)
    assert torch.equal(load_file(output_dir / "model.safetensors")["classifier.weight"], weights["head.fc.weight"])


def test_cyclic_dict_raises(tmp_path, output_dir):
    checkpoint = {}
    checkpoint["model"] = checkpoint
    torch.save(checkpoint, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="No state dict found"):
        convert_checkpoint(tmp_path / "model.pt", output_dir)


@pytest.mark.parametrize("name", ["cls_xxs", "segpaper_s"])
def test_official_names_match_reference_map(reference_data, name):
    reference = json.loads((reference_data / f"reference/keymap_{name}_official_to_transformers.json").read_text())
    # 6 distinct values per tensor: divisible into query, key and value
    tensors = {key: torch.arange(6) + 10 * i for i, key in enumerate(reference)}
    translation = translate(tensors, "official")
    assert translation.ignored == ()
    assert set(translation.tensors) == {target for targets in reference.values() for target in targets}
    for source, targets in reference.items():
        pieces = [translation.tensors[target] for target in targets]
        assert torch.equal(torch.cat(pieces), tensors[source])
        assert {translation.sources[target] for target in targets} == {source}


def test_official_ssdlite_head_names():
    """The names are written out because state dicts of both sides are interfaces."""
    official_weights = formula_state_dict(official_shapes("detection", 1 + 4))
    sources = translate(official_weights, "official").sources
    names = {source.removesuffix(".weight"): name.removesuffix(".weight") for name, source in sources.items()}
    expected = {"extra_layers.os_-1.1.block.conv": "head.extra_layers.pooled.pointwise.convolution"}
    for stride in (64, 128, 256):
        for short, name in (("dw_conv", "depthwise"), ("pw_conv", "pointwise")):
            layer = f"head.extra_layers.stride_{stride}.{name}"
            expected[f"extra_layers.os_{stride}.{short}.block.conv"] = f"{layer}.convolution"
            expected[f"extra_layers.os_{stride}.{short}.block.norm"] = f"{layer}.normalization"
    for i, level in enumerate(LEVELS):
        official, head = f"ssd_heads.{i}", f"head.level_heads.{level}"
        parts = [("proj_layer", "projection")] if i < 2 else []
        parts += [("loc_cls_layer.dw_conv", "depthwise")] if i < 5 else []
        for short, name in parts:
            expected[f"{official}.{short}.block.conv"] = f"{head}.{name}.convolution"
            expected[f"{official}.{short}.block.norm"] = f"{head}.{name}.normalization"
        predictor = "loc_cls_layer.pw_conv" if i < 5 else "loc_cls_layer"
        expected[f"{official}.{predictor}.block.conv"] = f"{head}.predictor.convolution"
    assert expected.items() <= names.items()
    weights = {source for source in official_weights if source.endswith(".weight")}
    assert {source + ".weight" for source in expected} == {w for w in weights if not w.startswith("encoder.")}
