"""Stands in for the image feature extraction pipeline's tests: the source distribution leaves out the folder."""

import numpy as np

from .image_pipelines import ImagePipelineTests


class ImageFeatureExtractionPipelineTests(ImagePipelineTests):
    """The last feature map as nested lists."""

    task = "image-feature-extraction"

    def check(self, result, image, pipe):
        """One finite map with the channels of the last convolution."""
        features = np.array(result)
        assert features.shape[:2] == (1, pipe.model.config.neck_hidden_sizes[-1]), features.shape
        assert np.isfinite(features).all()
