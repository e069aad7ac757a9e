"""Stand-in for the tests of the segmentation pipeline, which the source distribution does not contain."""

import numpy as np

from .image_pipelines import ImagePipelineTests


class ImageSegmentationPipelineTests(ImagePipelineTests):
    """Tests of the masks per predicted label."""

    task = "image-segmentation"

    def check(self, result, image, pipe):
        """Masks have the size of the image and cover every pixel exactly once."""
        masks = [np.asarray(entry["mask"]) // 255 for entry in result]
        assert all(mask.shape == (image.height, image.width) for mask in masks), [mask.shape for mask in masks]
        assert (np.sum(masks, axis=0) == 1).all()
        assert all(entry["label"] in pipe.model.config.label2id for entry in result), result
