"""Make the Auto classes know what this package adds to transformers."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoVideoProcessor,
)

from .modeling.configuration_mobilevit import MobileViTBackboneConfig
from .modeling.configuration_mobilevit_ssdlite import MobileViTSSDLiteConfig
from .modeling.image_processing_mobilevit_ssdlite import MobileViTSSDLiteImageProcessor
from .modeling.modeling_mobilevit import MobileViTBackbone
from .modeling.modeling_mobilevit_ssdlite import MobileViTSSDLiteForObjectDetection


def register() -> None:
    """Register the backbone, so that DETR-like models build it from their `backbone_config`, and the detector.

    A saved detector also brings its code along, for machines where this package is not installed.

    Classification and segmentation keep the stock `model_type` "mobilevit" and are not registered: stock classes in
    the same process stay as they are.
    """
    AutoConfig.register(MobileViTBackboneConfig.model_type, MobileViTBackboneConfig, exist_ok=True)
    AutoBackbone.register(MobileViTBackboneConfig, MobileViTBackbone, exist_ok=True)

    AutoConfig.register(MobileViTSSDLiteConfig.model_type, MobileViTSSDLiteConfig, exist_ok=True)
    AutoModelForObjectDetection.register(MobileViTSSDLiteConfig, MobileViTSSDLiteForObjectDetection, exist_ok=True)
    AutoImageProcessor.register(
        MobileViTSSDLiteConfig, image_processor_classes={"torchvision": MobileViTSSDLiteImageProcessor}, exist_ok=True
    )
    # `pipeline` also looks for a video processor where an image processor brings its code, and would ask at the
    # terminal whether to trust that. This says that there is none.
    AutoVideoProcessor.register(MobileViTSSDLiteConfig, None, exist_ok=True)

    MobileViTSSDLiteConfig.register_for_auto_class()
    MobileViTSSDLiteForObjectDetection.register_for_auto_class("AutoModelForObjectDetection")
    MobileViTSSDLiteImageProcessor.register_for_auto_class()
