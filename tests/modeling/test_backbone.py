"""Backbone: loading from all MobileViT checkpoints, Auto classes, and use in transformers' detectors."""

import logging
import warnings

import pytest
import torch
import transformers
from formula import formula_image
from hub_server import HubServer
from transformers import AutoBackbone, AutoConfig

import mobilevit_hf
from mobilevit_hf import MobileViTBackbone, MobileViTBackboneConfig

STAGES = ["stage1", "stage2", "stage3", "stage4", "stage5"]


@pytest.fixture
def no_warnings(caplog):
    """Fail on warnings of Python or of transformers' loggers."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)  # transformers' loggers do not propagate to the root logger
    with warnings.catch_warnings(action="error", category=UserWarning):
        yield
    logger.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.WARNING] == []


def evaluate(model, **kwargs):
    with torch.no_grad():
        return model.eval()(formula_image(64, 96), **kwargs)


# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["MobileViTForImageClassification", "MobileViTForSemanticSegmentation", "MobileViTModel"]
)
@pytest.mark.parametrize("library", [mobilevit_hf, transformers])
def test_loads_from_all_checkpoints(library, name, tiny_model, tmp_path, no_warnings):
    model = tiny_model(getattr(library, name), output_stride=16)
    model.save_pretrained(tmp_path)
    backbone, report = MobileViTBackbone.from_pretrained(tmp_path, out_features=STAGES, output_loading_info=True)
    assert not any(report.values()), report
    assert (backbone.config.model_type, backbone.config.output_stride) == ("mobilevit_backbone", 16)
    expected = evaluate(model, output_hidden_states=True).hidden_states
    torch.testing.assert_close(evaluate(backbone).feature_maps, expected, atol=1e-5, rtol=1e-5)
    assert all(features.std() > 1e-2 for features in expected)


def test_returns_last_feature_map_by_default(checkpoints):
    backbone = MobileViTBackbone.from_pretrained(checkpoints["image-classification"])
    assert backbone.out_features == ["stage5"]
    assert [features.shape for features in evaluate(backbone).feature_maps] == [(1, 16, 2, 3)]


def test_auto_classes_load_saved_backbone(checkpoints, tmp_path, no_warnings):
    folder = checkpoints["image-classification"]
    backbone = MobileViTBackbone.from_pretrained(folder, out_features=["stem", "stage3", "stage5"])
    backbone.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is MobileViTBackboneConfig
    assert type(AutoBackbone.from_config(AutoConfig.from_pretrained(tmp_path))) is MobileViTBackbone
    loaded, report = MobileViTBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert loaded.out_features == ["stem", "stage3", "stage5"]
    assert loaded.channels == [features.shape[1] for features in evaluate(loaded).feature_maps] == [4, 8, 16]
    torch.testing.assert_close(evaluate(loaded).feature_maps, evaluate(backbone).feature_maps, atol=0, rtol=0)


@pytest.mark.slow
def test_auto_backbone_loads_from_the_hub(checkpoints, run_python, tmp_path):
    """Hub only: in transformers 5.23 `AutoBackbone.from_pretrained` rejects all local folders."""
    code = f"""
        import torch, transformers
        from mobilevit_hf import MobileViTBackbone

        backbone = MobileViTBackbone.from_pretrained({str(checkpoints["image-classification"])!r}).eval()
        backbone.push_to_hub("user/backbone")
        loaded = transformers.AutoBackbone.from_pretrained("user/backbone").eval()
        assert type(loaded) is MobileViTBackbone
        pixels = torch.linspace(0, 1, 3 * 64 * 64).view(1, 3, 64, 64)
        torch.testing.assert_close(loaded(pixels).feature_maps, backbone(pixels).feature_maps, atol=0, rtol=0)
        """
    with HubServer() as hub:
        run_python(code, hub.environment(tmp_path))


# --- detectors -------------------------------------------------------------------------------------------------------


def rt_detr_fields(backbone_config):
    """Return fields of a small RT-DETR or D-FINE."""
    return {
        "backbone_config": backbone_config,
        "encoder_in_channels": list(backbone_config.neck_hidden_sizes[3:6]),
        "encoder_hidden_dim": 16,
        "encoder_ffn_dim": 16,
        "encoder_attention_heads": 2,
        "d_model": 16,
        "num_queries": 10,
        "decoder_in_channels": [16, 16, 16],
        "decoder_ffn_dim": 16,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "num_denoising": 4,
        "num_labels": 3,
    }


def detr_fields(backbone_config):
    return {
        "backbone_config": backbone_config,
        "use_timm_backbone": False,
        "num_queries": 10,
        "encoder_layers": 1,
        "encoder_ffn_dim": 16,
        "encoder_attention_heads": 2,
        "decoder_layers": 1,
        "decoder_ffn_dim": 16,
        "decoder_attention_heads": 2,
        "d_model": 16,
        "num_labels": 3,
    }


# Fields of the configuration and input feature maps, by detector class.
DETECTORS = {
    transformers.RTDetrForObjectDetection: (rt_detr_fields, STAGES[2:]),
    transformers.DFineForObjectDetection: (rt_detr_fields, STAGES[2:]),
    transformers.DetrForObjectDetection: (detr_fields, STAGES[4:]),
}


@pytest.fixture(params=DETECTORS)
def detector_class(request):
    return request.param


@pytest.fixture
def backbone(checkpoints, detector_class):
    """A pretrained backbone with the detector's input feature maps."""
    _, out_features = DETECTORS[detector_class]
    return MobileViTBackbone.from_pretrained(checkpoints["image-classification"], out_features=out_features)


@pytest.fixture
def detector(detector_class, backbone):
    """A new detector with the weights of the pretrained backbone."""
    make_fields, _ = DETECTORS[detector_class]
    torch.manual_seed(0)
    detector = detector_class(detector_class.config_class(**make_fields(backbone.config)))
    missing, unexpected = backbone_of(detector).load_state_dict(backbone.state_dict(), strict=False)
    assert not missing
    assert all(name.endswith("num_batches_tracked") for name in unexpected)
    return detector


def backbone_of(detector):
    return detector.model.backbone.model


def test_backbone_computes_equal_features_in_a_detector(detector, backbone):
    actual, expected = evaluate(backbone_of(detector)).feature_maps, evaluate(backbone).feature_maps
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in backbone_of(detector).modules())  # frozen


def test_detector_loss_has_backbone_gradients(detector):
    pytest.importorskip("scipy", reason="the loss of these detectors requires scipy")
    detector.train()
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.2, 0.3, 0.2, 0.1]])
    labels = [{"class_labels": torch.tensor([0, 2]), "boxes": boxes}]
    loss = detector(formula_image(64, 96), labels=labels).loss
    loss.backward()
    assert loss.isfinite()
    for name, parameter in backbone_of(detector).named_parameters():
        if "convolution" in name or "dense" in name:
            assert parameter.grad.isfinite().all(), name
    assert backbone_of(detector).conv_stem.convolution.weight.grad.abs().max() > 1e-8


def test_saved_detector_loads_with_equal_outputs(detector, tmp_path, no_warnings):
    detector.save_pretrained(tmp_path)
    loaded, report = type(detector).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert type(loaded.config.backbone_config) is MobileViTBackboneConfig
    assert type(backbone_of(loaded)) is MobileViTBackbone
    actual, expected = evaluate(loaded), evaluate(detector)
    assert actual.pred_boxes.shape == (1, 10, 4)
    for name in ("logits", "pred_boxes"):
        torch.testing.assert_close(actual[name], expected[name], atol=1e-6, rtol=1e-6)
