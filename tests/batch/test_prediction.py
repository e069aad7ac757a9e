import numpy as np
import pytest
import torch

import mobilevit_hf
from mobilevit_hf.batch.prediction import BATCH_SIZE, check_embeddings, predict_images
from mobilevit_hf.data.images import UnreadableImageError


@pytest.fixture
def predictor(checkpoints):
    return mobilevit_hf.pipeline("image-classification", str(checkpoints["image-classification"]))


def predict(predictor, image, numbers, **options):
    """Predict rotated copies of an image; odd tens can't be read."""

    def load(number):
        if number % 20 == 10:
            raise UnreadableImageError(f"bad {number}")
        return image.rotate(number), number

    return list(predict_images(predictor, numbers, load, {"top_k": 2}, **options))


@pytest.mark.parametrize("pad", [True, False])
def test_results_are_those_of_the_items_in_order(predictor, image, pad):
    numbers = [10, *range(10), 30, 50, 12]
    results = predict(predictor, image, numbers, pad=pad, embeddings=True)
    assert [result.item for result in results] == numbers
    assert [str(result.loaded) for result in results if not result.predictions] == ["bad 10", "bad 30", "bad 50"]
    for result in results:
        if result.predictions:
            (expected,) = predict(predictor, image, [result.item], pad=False, embeddings=True)
            assert result.loaded == result.item
            assert result.predictions[0]["score"] == pytest.approx(expected.predictions[0]["score"], abs=1e-5)
            np.testing.assert_allclose(result.embedding, expected.embedding, atol=1e-4)


def test_padded_batches_have_one_size(predictor, image):
    sizes = []
    predictor.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    predict(predictor, image, range(9), pad=True)
    assert sizes == [BATCH_SIZE, BATCH_SIZE]


def test_source_without_readable_images(predictor, image):
    assert [str(result.loaded) for result in predict(predictor, image, [10, 30], pad=True)] == ["bad 10", "bad 30"]


def test_embeddings_need_an_encoder():
    with pytest.raises(ValueError, match="embeddings: got Linear, expected a MobileViT"):
        check_embeddings(type("Predictor", (), {"model": torch.nn.Linear(1, 1)}))
