"""Stand-in for the tests of the feature extraction pipeline, which the source distribution does not contain."""

import numpy as np

from .image_pipelines import ImagePipelineTests


class ImageFeatureExtractionPipelineTests(ImagePipelineTests):
    """Tests of the last feature map as nested lists."""

    task = "image-feature-extraction"

    def check(self, result, image, pipe):
        """The feature map is finite and has the channels of the last convolution."""
        features = np.array(result)
        assert features.shape[:2] == (1, pipe.model.config.neck_hidden_sizes[-1]), features.shape
        assert np.isfinite(features).all()
