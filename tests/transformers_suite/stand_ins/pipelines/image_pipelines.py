"""Base class of the stand-ins for the image pipeline tests."""

from typing import Any

import numpy as np
from PIL import Image
from transformers import Pipeline, pipeline


class ImagePipelineTests:
    """Test of the pipeline of a task with a few images."""

    task: str

    def get_test_pipeline(
        self, model, tokenizer=None, image_processor=None, feature_extractor=None, processor=None, dtype="float32"
    ) -> tuple[Pipeline, list[Image.Image]]:
        """Return the pipeline and images of different sizes."""
        rng = np.random.default_rng(0)
        sizes = [(48, 40), (32, 32), (40, 64)]
        images = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
        return pipeline(self.task, model=model, image_processor=image_processor, dtype=dtype), images

    def run_pipeline_test(self, pipe: Pipeline, images: list[Image.Image]) -> None:
        """Check the results for a single image and for batches of two."""
        self.check(pipe(images[0]), images[0], pipe)
        results = pipe(images, batch_size=2)
        assert len(results) == len(images), (len(results), len(images))
        for result, image in zip(results, images, strict=True):
            self.check(result, image, pipe)

    def check(self, result: Any, image: Image.Image, pipe: Pipeline) -> None:
        """Check the result of an image."""
        raise NotImplementedError
