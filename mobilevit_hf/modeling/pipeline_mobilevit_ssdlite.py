"""Pipeline of the MobileViT SSDLite detector: transformers' own, at the model's recommended threshold."""

from typing import Any

from transformers import ObjectDetectionPipeline

# Task for which `transformers.pipeline` creates the pipeline, in the format of a configuration's `custom_pipelines`.
CUSTOM_PIPELINES = {
    "object-detection": {
        "impl": "pipeline_mobilevit_ssdlite.MobileViTSSDLitePipeline",
        "pt": ["AutoModelForObjectDetection"],
    }
}


class MobileViTSSDLitePipeline(ObjectDetectionPipeline):
    """Object detection at the model's `recommended_threshold` unless another `threshold` is passed.

    `transformers.pipeline(..., trust_remote_code=True)` creates it for a saved detector. transformers' own class would
    pass its default of 0.5 to the image processor, which can't tell it from a 0.5 of the user.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # transformers has replaced the names of classes in it by the classes, which can't be saved.
        vars(self.model.config).pop("custom_pipelines", None)

    def postprocess(self, model_outputs: Any, threshold: float | None = None) -> list[dict[str, Any]]:
        """Return the detections of an image with scores above a threshold."""
        if threshold is None:
            threshold = self.model.config.recommended_threshold
        return super().postprocess(model_outputs, **({} if threshold is None else {"threshold": threshold}))


__all__ = ["MobileViTSSDLitePipeline"]
