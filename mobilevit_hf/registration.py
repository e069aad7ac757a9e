"""Register the backbone and the detector with transformers' Auto classes, without importing transformers first."""

from functools import cache
from types import ModuleType
from typing import Any

from wrapt import register_post_import_hook

# The mappings of Auto classes that have entries of this package, by the module of transformers they are in.
MAPPINGS = {
    "configuration_auto": ("CONFIG_MAPPING",),
    "modeling_auto": ("MODEL_FOR_BACKBONE_MAPPING", "MODEL_FOR_OBJECT_DETECTION_MAPPING"),
    "image_processing_auto": ("IMAGE_PROCESSOR_MAPPING",),
}
MODEL_TYPES = ("mobilevit_backbone", "mobilevit_ssdlite")


def register() -> None:
    """Register the classes when an Auto class first looks one up.

    Classification and segmentation keep the stock `model_type` "mobilevit" and are not registered: stock classes in
    the same process stay as they are.
    """
    for name in MAPPINGS:
        register_post_import_hook(_register_on_lookup, f"transformers.models.auto.{name}")


def _register_on_lookup(auto: ModuleType) -> None:
    # Importing our classes here would be circular: the stock MobileViT module, which they extend, may be the one whose
    # import led to this.
    for name in MAPPINGS[auto.__name__.rpartition(".")[2]]:
        mapping = getattr(auto, name)
        mapping._extra_content = _Entries(mapping._extra_content)


class _Entries(dict[Any, Any]):
    """Registered entries of a mapping, by `model_type` or configuration class; this package's are added on lookup."""

    def __contains__(self, key: object) -> bool:
        if (key if isinstance(key, str) else getattr(key, "model_type", None)) in MODEL_TYPES:
            _register_classes()
        return super().__contains__(key)

    def values(self) -> Any:
        _register_classes()
        return super().values()


@cache
def _register_classes() -> None:
    from transformers import AutoBackbone, AutoConfig, AutoModelForObjectDetection, AutoVideoProcessor
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    from .modeling.configuration_mobilevit import MobileViTBackboneConfig
    from .modeling.configuration_mobilevit_ssdlite import MobileViTSSDLiteConfig
    from .modeling.image_processing_mobilevit_ssdlite import MobileViTSSDLiteImageProcessor
    from .modeling.modeling_mobilevit import MobileViTBackbone
    from .modeling.modeling_mobilevit_ssdlite import MobileViTSSDLiteForObjectDetection

    for config in (MobileViTBackboneConfig, MobileViTSSDLiteConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoBackbone.register(MobileViTBackboneConfig, MobileViTBackbone, exist_ok=True)
    AutoModelForObjectDetection.register(MobileViTSSDLiteConfig, MobileViTSSDLiteForObjectDetection, exist_ok=True)
    # AutoImageProcessor.register would look the class up, and so lead here again.
    processors: Any = {"torchvision": MobileViTSSDLiteImageProcessor}
    IMAGE_PROCESSOR_MAPPING.register(MobileViTSSDLiteConfig, processors, exist_ok=True)
    # `pipeline` also looks for a video processor where an image processor brings its code, and would ask at the
    # terminal whether to trust that. None means there is none.
    AutoVideoProcessor.register(MobileViTSSDLiteConfig, None, exist_ok=True)
