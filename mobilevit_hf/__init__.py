"""MobileViT at home in Hugging Face: fine-tune, publish and run a light vision model."""

from .allocator import tune_allocator
from .configuration import MobileViTBackboneConfig, MobileViTConfig
from .convert import ConversionReport, convert_checkpoint
from .modeling.modeling_mobilevit import (
    MobileViTBackbone,
    MobileViTForImageClassification,
    MobileViTForSemanticSegmentation,
    MobileViTModel,
    MobileViTPreTrainedModel,
)
from .pipelines import pipeline
from .registration import register

register()

__version__ = "0.1.0"

__all__ = [
    "ConversionReport",
    "MobileViTBackbone",
    "MobileViTBackboneConfig",
    "MobileViTConfig",
    "MobileViTForImageClassification",
    "MobileViTForSemanticSegmentation",
    "MobileViTModel",
    "MobileViTPreTrainedModel",
    "convert_checkpoint",
    "pipeline",
    "tune_allocator",
]
