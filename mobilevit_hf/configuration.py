"""Public configuration classes and the table of published variants."""

from .modeling.configuration_mobilevit import HUB_NAMES, VARIANTS, MobileViTBackboneConfig, MobileViTConfig
from .modeling.configuration_mobilevit_ssdlite import MobileViTSSDLiteConfig

__all__ = ["HUB_NAMES", "VARIANTS", "MobileViTBackboneConfig", "MobileViTConfig", "MobileViTSSDLiteConfig"]
