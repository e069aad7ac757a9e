from .class_mapping import match_classes
from .evaluator import BATCH_SIZE, evaluate_model
from .results import BestThreshold, ClassifiedImages, DetectedImage, EvaluationResult, Mistake

__all__ = [
    "evaluate_model",
    "EvaluationResult",
    "ClassifiedImages",
    "DetectedImage",
    "BestThreshold",
    "Mistake",
    "match_classes",
    "BATCH_SIZE",
]
