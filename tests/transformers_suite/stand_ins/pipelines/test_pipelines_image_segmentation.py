"""Stands in for the image segmentation pipeline's tests: the source distribution leaves out the folder."""

import numpy as np

from .image_pipelines import ImagePipelineTests


class ImageSegmentationPipelineTests(ImagePipelineTests):
    """A mask for every label found."""

    task = "image-segmentation"

    def check(self, result, image, pipe):
        """Masks have the size of the image and, put together, cover every pixel once."""
        masks = [np.asarray(entry["mask"]) // 255 for entry in result]
        assert all(mask.shape == (image.height, image.width) for mask in masks), [mask.shape for mask in masks]
        assert (np.sum(masks, axis=0) == 1).all()
        assert all(entry["label"] in pipe.model.config.label2id for entry in result), result
