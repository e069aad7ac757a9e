from .class_mapping import match_classes
from .evaluator import BATCH_SIZE, evaluate_model
from .predictions import ClassifiedImages, DetectedImage, SegmentedImage
from .results import EvaluationResult, Mistake, ThresholdMetrics
from .segmentation import take_whole_images

__all__ = [
    "evaluate_model",
    "EvaluationResult",
    "ClassifiedImages",
    "DetectedImage",
    "SegmentedImage",
    "ThresholdMetrics",
    "Mistake",
    "match_classes",
    "take_whole_images",
    "BATCH_SIZE",
]
