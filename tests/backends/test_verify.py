"""The comparison of an exported model with its torch model."""

import pytest
import torch
import transformers
from transformers.modeling_outputs import ImageClassifierOutput

from mobilevit_hf.backends.verify import Comparison, check_comparison, compare, preprocess


@pytest.mark.parametrize("value", [float("nan"), 0.5])
def test_differences_and_nan_are_rejected(value):
    with pytest.raises(ValueError, match="The file was not kept"):
        check_comparison(Comparison(0.0, value), "x", float32=True)
    with pytest.raises(ValueError, match="The file was not kept"):
        check_comparison(Comparison(value, 1.0), "x", float32=True)
    with pytest.raises(ValueError, match=r"expected 97\.0%"):
        check_comparison(Comparison(5.0, value), "x", float32=False)
    check_comparison(Comparison(5.0, 0.97), "x", float32=False)


@pytest.mark.parametrize(
    ("label", "tie_tolerance", "agreement"), [(0, 0.0, 1), (1, 0.0, 0), (1, 0.1, 1), (2, 0.1, 0), (3, 0.1, 0)]
)
def test_labels_within_the_tie_tolerance_agree(label, tie_tolerance, agreement):
    """The second logit is 0.005 of the range from the largest, the third more than 0.1."""
    logits = torch.tensor([[4.0, 3.95, 2.99, -6.0]])
    model, exported = torch.nn.Identity(), torch.nn.Identity()
    model.forward = lambda pixel_values: ImageClassifierOutput(logits=logits)
    exported.forward = lambda pixel_values: ImageClassifierOutput(logits=torch.eye(4)[[label]])
    exported.outputs = ("logits",)
    pixels = torch.zeros(1, 3, 2, 2)
    assert compare(model, exported, pixels, "image-classification", None, tie_tolerance).agreement == agreement


def test_preprocessed_images_of_several_sizes_are_an_error(images):
    processor = transformers.MobileViTImageProcessor(size={"shortest_edge": 32}, do_center_crop=False)
    with pytest.raises(ValueError, match="got outputs of 2 sizes, expected one"):
        preprocess([images[0], images[3], images[3]], processor)
    assert preprocess(images[3:4] * 2, processor).shape[:2] == (2, 3)
