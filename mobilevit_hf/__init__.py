"""MobileViT at home in Hugging Face: fine-tune, publish and run a light vision model."""

import importlib
import logging
from types import ModuleType

# With torchao installed, which ExecuTorch needs, importing transformers makes torch warn of torchao's own code.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

from .allocator import tune_allocator
from .configuration import MobileViTBackboneConfig, MobileViTConfig, MobileViTSSDLiteConfig
from .convert.conversion import ConversionReport, convert_checkpoint
from .model_sources import builtin
from .modeling.image_processing_mobilevit_ssdlite import MobileViTSSDLiteImageProcessor
from .modeling.modeling_mobilevit import (
    MobileViTBackbone,
    MobileViTForImageClassification,
    MobileViTForSemanticSegmentation,
    MobileViTModel,
    MobileViTPreTrainedModel,
)
from .modeling.modeling_mobilevit_ssdlite import MobileViTSSDLiteForObjectDetection
from .modeling.ssdlite import fit_anchors
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
    "MobileViTSSDLiteConfig",
    "MobileViTSSDLiteForObjectDetection",
    "MobileViTSSDLiteImageProcessor",
    "builtin",
    "convert_checkpoint",
    "fit_anchors",
    "pipeline",
    "tune_allocator",
]


def __getattr__(name: str) -> ModuleType:
    """Parts of the package that only some need, and that take a while to import."""
    if name in ("hub", "metrics", "training"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
