"""Register the backbone and the detector with transformers' Auto classes, without importing transformers first."""

import importlib
from types import ModuleType
from typing import Any

from wrapt import register_post_import_hook

# The modules of `modeling` to import for a `model_type` of this package.
MODULES = {
    "mobilevit_backbone": ("modeling_mobilevit",),
    "mobilevit_ssdlite": ("modeling_mobilevit_ssdlite", "image_processing_mobilevit_ssdlite"),
}


# The mappings of Auto classes that have entries of this package, by the module of transformers they are in.
MAPPINGS = {
    "configuration_auto": ("CONFIG_MAPPING",),
    "modeling_auto": ("MODEL_FOR_BACKBONE_MAPPING", "MODEL_FOR_OBJECT_DETECTION_MAPPING"),
    "image_processing_auto": ("IMAGE_PROCESSOR_MAPPING",),
}


def register() -> None:
    """Register each class when its module is imported, and import the modules when an Auto class looks them up.

    Classification and segmentation keep the stock `model_type` "mobilevit" and are not registered: stock classes in
    the same process stay as they are.
    """
    for name in MAPPINGS:
        register_post_import_hook(_import_on_lookup, f"transformers.models.auto.{name}")
    for name, hook in (
        ("configuration_mobilevit", _register_backbone_config),
        ("configuration_mobilevit_ssdlite", _register_detector_config),
        ("modeling_mobilevit", _register_backbone),
        ("modeling_mobilevit_ssdlite", _register_detector),
        ("image_processing_mobilevit_ssdlite", _register_image_processor),
    ):
        register_post_import_hook(hook, f"{__package__}.modeling.{name}")


class _Entries(dict[Any, Any]):
    """Registered entries of a mapping, by `model_type` or configuration class; this package's are made on lookup."""

    def __contains__(self, key: object) -> bool:
        _import_modules(key if isinstance(key, str) else getattr(key, "model_type", None))
        return super().__contains__(key)

    def values(self) -> Any:
        for model_type in MODULES:
            _import_modules(model_type)
        return super().values()


def _import_modules(model_type: str | None) -> None:
    for name in MODULES.get(model_type or "", ()):
        importlib.import_module(f"{__package__}.modeling.{name}")


def _import_on_lookup(auto: ModuleType) -> None:
    # The public `register` methods take classes. Importing ours here would be circular: the stock MobileViT module,
    # which they extend, may be the one whose import led to this.
    for name in MAPPINGS[auto.__name__.rpartition(".")[2]]:
        mapping = getattr(auto, name)
        mapping._extra_content = _Entries(mapping._extra_content)


def _register_backbone_config(module: ModuleType) -> None:
    from transformers import AutoConfig

    config = module.MobileViTBackboneConfig
    AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_detector_config(module: ModuleType) -> None:
    from transformers import AutoConfig

    config = module.MobileViTSSDLiteConfig
    AutoConfig.register(config.model_type, config, exist_ok=True)
    config.register_for_auto_class()


def _register_backbone(module: ModuleType) -> None:
    from transformers import AutoBackbone

    AutoBackbone.register(module.MobileViTBackboneConfig, module.MobileViTBackbone, exist_ok=True)


def _register_detector(module: ModuleType) -> None:
    from transformers import AutoModelForObjectDetection, AutoVideoProcessor

    config, model = module.MobileViTSSDLiteConfig, module.MobileViTSSDLiteForObjectDetection
    AutoModelForObjectDetection.register(config, model, exist_ok=True)
    # A saved detector brings its code along, for machines where this package is not installed.
    model.register_for_auto_class("AutoModelForObjectDetection")
    # `pipeline` also looks for a video processor where an image processor brings its code, and would ask at the
    # terminal whether to trust that. None means there is none.
    AutoVideoProcessor.register(config, None, exist_ok=True)


def _register_image_processor(module: ModuleType) -> None:
    from transformers import AutoImageProcessor

    from .modeling.configuration_mobilevit_ssdlite import MobileViTSSDLiteConfig

    processor = module.MobileViTSSDLiteImageProcessor
    AutoImageProcessor.register(
        MobileViTSSDLiteConfig, image_processor_classes={"torchvision": processor}, exist_ok=True
    )
    processor.register_for_auto_class()
