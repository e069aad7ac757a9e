"""Stand-in for the tests of the image classification pipeline, which the source distribution does not contain."""

from .image_pipelines import ImagePipelineTests


class ImageClassificationPipelineTests(ImagePipelineTests):
    """Tests of the five best classes, in descending order of the score."""

    task = "image-classification"

    def check(self, result, image, pipe):
        """Scores are probabilities in descending order, labels are those of the configuration."""
        scores = [entry["score"] for entry in result]
        assert len(result) == min(5, pipe.model.config.num_labels), result
        assert scores == sorted(scores, reverse=True), scores
        assert all(0 <= score <= 1 for score in scores), scores
        assert all(entry["label"] in pipe.model.config.label2id for entry in result), result
