from .class_mapping import match_classes
from .evaluator import BATCH_SIZE, evaluate_model
from .results import BestThreshold, EvaluationResult, Mistake

__all__ = ["evaluate_model", "EvaluationResult", "BestThreshold", "Mistake", "match_classes", "BATCH_SIZE"]
