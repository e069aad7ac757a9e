"""Make the Auto classes know what this package adds to transformers."""

from transformers import AutoBackbone, AutoConfig

from .modeling.configuration_mobilevit import MobileViTBackboneConfig
from .modeling.modeling_mobilevit import MobileViTBackbone


def register() -> None:
    """Register the backbone, so that DETR-like models build it from their `backbone_config`.

    Classification and segmentation keep the stock `model_type` "mobilevit" and are not registered: stock classes in
    the same process stay as they are.
    """
    AutoConfig.register(MobileViTBackboneConfig.model_type, MobileViTBackboneConfig, exist_ok=True)
    AutoBackbone.register(MobileViTBackboneConfig, MobileViTBackbone, exist_ok=True)
