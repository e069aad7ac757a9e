"""Folders of palette PNG masks."""

import numpy as np
import pytest
from dataset_files import noise_image
from PIL import Image

from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.data.segments import split_label_map
from mobilevit_hf.data.writers.base import PredictedImage
from mobilevit_hf.data.writers.png_masks import PngMaskWriter


@pytest.mark.parametrize(
    "names",
    [
        ("road", "car", "tree"),
        ("#road", "2", "tree"),
        ("# road", "1 car", "2 tree"),
        ("2", "3", "4"),
        ("0 a", "1 b", "c"),
    ],
)
def test_written_masks_and_names_are_read_back(names, tmp_path):
    label_map = np.random.default_rng(0).integers(0, 3, (16, 24))
    noise_image(0, 24, 16).save(tmp_path / "a.png")
    writer = PngMaskWriter(tmp_path / "out", names)
    segments = split_label_map(label_map, dict(enumerate(names)))
    writer.write(PredictedImage("a.png", (24, 16), segments, (tmp_path / "a.png").read_bytes()))
    writer.finish()
    dataset = load_dataset(tmp_path / "out", validation_fraction=0)
    assert dataset.classes == names
    np.testing.assert_array_equal(dataset.splits["train"][0].mask.read(), label_map)
    assert Image.open(tmp_path / "out/masks/a.png").mode == "P"
