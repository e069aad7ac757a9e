from . import batch, data, evaluation, hub, metrics, training
from .allocator import tune_allocator
from .backends.export import export_model
from .configuration import MobileViTBackboneConfig, MobileViTConfig, MobileViTSSDLiteConfig
from .convert.conversion import ConversionReport, convert_checkpoint
from .model_sources import builtin
from .modeling.anchors_ssdlite import fit_anchors
from .modeling.image_processing_mobilevit_ssdlite import MobileViTSSDLiteImageProcessor
from .modeling.modeling_mobilevit import (
    MobileViTBackbone,
    MobileViTForImageClassification,
    MobileViTForSemanticSegmentation,
    MobileViTModel,
    MobileViTPreTrainedModel,
)
from .modeling.modeling_mobilevit_ssdlite import MobileViTSSDLiteForObjectDetection
from .pipelines import pipeline

__version__: str

__all__ = [
    "ConversionReport",
    "MobileViTBackbone",
    "MobileViTBackboneConfig",
    "MobileViTConfig",
    "MobileViTForImageClassification",
    "MobileViTForSemanticSegmentation",
    "MobileViTModel",
    "MobileViTPreTrainedModel",
    "MobileViTSSDLiteConfig",
    "MobileViTSSDLiteForObjectDetection",
    "MobileViTSSDLiteImageProcessor",
    "batch",
    "builtin",
    "convert_checkpoint",
    "data",
    "evaluation",
    "export_model",
    "fit_anchors",
    "hub",
    "metrics",
    "pipeline",
    "training",
    "tune_allocator",
]
