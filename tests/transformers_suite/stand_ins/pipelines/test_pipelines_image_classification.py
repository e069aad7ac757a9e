"""Stands in for the image classification pipeline's tests: the source distribution leaves out the folder."""

from .image_pipelines import ImagePipelineTests


class ImageClassificationPipelineTests(ImagePipelineTests):
    """Five best labels, best first."""

    task = "image-classification"

    def check(self, result, image, pipe):
        """Scores are probabilities in falling order, labels those of the config."""
        scores = [entry["score"] for entry in result]
        assert len(result) == min(5, pipe.model.config.num_labels), result
        assert scores == sorted(scores, reverse=True), scores
        assert all(0 <= score <= 1 for score in scores), scores
        assert all(entry["label"] in pipe.model.config.label2id for entry in result), result
