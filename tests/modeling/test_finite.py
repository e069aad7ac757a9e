"""Checks for NaN and infinity in weights and outputs."""

import pytest
import torch
from model_suite import tiny_detector
from torch import nn

import mobilevit_hf
from mobilevit_hf.modeling.finite import check_finite_outputs, check_finite_weights

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("classifier.bias", NAN, "got NaN in classifier.bias, expected"),
        ("mobilevit.conv_stem.normalization.running_var", INFINITY, "got infinity in mobilevit.conv_stem.norm"),
        ("mobilevit.conv_stem.normalization.running_mean", -INFINITY, "got infinity in mobilevit.conv_stem.norm"),
    ],
)
def test_first_tensor_is_named(name, value, message, dtype, tiny_model):
    model = tiny_model(mobilevit_hf.MobileViTForImageClassification).to(dtype)
    check_finite_weights(model, "folder")
    model.state_dict()[name][1] = value
    with pytest.raises(ValueError, match=f"^folder: {message}"):
        check_finite_weights(model, "folder")


def test_further_tensors_are_counted():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    for i, value in ((1, INFINITY), (2, NAN)):
        nn.init.constant_(model[i].weight, value)
    with pytest.raises(ValueError, match=r"got infinity in 1\.weight and 1 more, expected"):
        check_finite_weights(model, "folder")


def test_tensors_without_values_are_ignored():
    check_finite_weights(nn.Linear(2, 2, device="meta"), "folder")


def test_image_of_a_non_finite_output_is_indexed():
    outputs = {"logits": torch.zeros(3, 4, 5), "pred_boxes": torch.zeros(3, 4, 4), "auxiliary": torch.tensor([NAN])}
    check_finite_outputs(outputs, ["logits", "pred_boxes", "missing"])
    outputs["pred_boxes"][2, 1, 3] = INFINITY
    with pytest.raises(ValueError, match="image 2 of the batch: got infinity in pred_boxes") as caught:
        check_finite_outputs(outputs, ["logits", "pred_boxes"])
    assert caught.value.index == 2


def test_post_processing_rejects_nan_instead_of_returning_no_detections():
    with torch.no_grad():
        outputs = tiny_detector()(torch.rand(2, 3, 64, 64))
    outputs.logits[1, 0, 0] = NAN
    with pytest.raises(ValueError, match="image 1 of the batch: got NaN in logits"):
        mobilevit_hf.MobileViTSSDLiteImageProcessor().post_process_object_detection(outputs)
