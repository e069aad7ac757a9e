"""The static page's resize in JavaScript: equal to the image processors."""

import json
import shutil
import subprocess
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image
from transformers import MobileViTImageProcessor

from mobilevit_hf import MobileViTSSDLiteImageProcessor
from mobilevit_hf.demo.static_page import STATIC, read_preprocessing

PROGRAM = """
import fs from "fs";
import { Resizer } from "./resize.mjs";
for (const { file, width, height, preprocessing } of JSON.parse(fs.readFileSync("cases.json"))) {
  const pixels = new Uint8ClampedArray(fs.readFileSync(file));
  const readRows = (row, count) => pixels.subarray(row * width * 4, (row + count) * width * 4);
  fs.writeFileSync(`${file}.out`, new Resizer(width, height, preprocessing).resize(readRows));
}
"""
PROCESSORS = [
    MobileViTImageProcessor(size={"shortest_edge": 144}, crop_size={"height": 128, "width": 128}, resample=2),
    MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}, resample=3),
    MobileViTImageProcessor(size={"shortest_edge": 50}, crop_size={"height": 65, "width": 64}, resample=2),  # padded
    MobileViTImageProcessor(size={"height": 40, "width": 56}, do_center_crop=False, resample=2),
    MobileViTSSDLiteImageProcessor(),
]
SIZES = [(640, 480), (77, 101), (33, 600), (320, 320), (129, 128), (1, 1)]  # width, height


def test_pixels_equal_those_of_the_image_processors(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")
    shutil.copy(STATIC / "resize.js", tmp_path / "resize.mjs")
    (tmp_path / "main.mjs").write_text(PROGRAM)
    generator, cases, expected = np.random.default_rng(0), [], []
    for width, height in SIZES:
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        pixels[: height // 2] = np.linspace(0, 255, width, dtype=np.uint8)[:, None]
        for processor in PROCESSORS:
            preprocessing = asdict(read_preprocessing(processor, "model"))
            file = f"{len(cases)}.rgba"
            np.dstack([pixels, np.full((height, width), 255, np.uint8)]).tofile(tmp_path / file)
            cases.append({"file": file, "width": width, "height": height, "preprocessing": preprocessing})
            values = processor(Image.fromarray(pixels), do_flip_channel_order=False, return_tensors="np").pixel_values
            expected.append((255 * values[0].transpose(1, 2, 0)).round())
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    subprocess.run([node, "main.mjs"], cwd=tmp_path, check=True)
    for case, values in zip(cases, expected, strict=True):
        pixels = np.fromfile(tmp_path / f"{case['file']}.out", np.uint8).reshape(values.shape)
        assert np.abs(pixels - values).max() <= 1, case  # 0 on processors with AVX2
