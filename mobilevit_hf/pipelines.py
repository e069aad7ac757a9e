"""transformers' pipelines on this package's faster models."""

import copy
import os
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import AutoConfig, Pipeline, PreTrainedModel

from .modeling.layers_mobilevit import MobileViTConvLayer
from .modeling.modeling_mobilevit import (
    MobileViTForImageClassification,
    MobileViTForSemanticSegmentation,
    MobileViTModel,
    MobileViTPreTrainedModel,
)
from .modeling.modeling_mobilevit_ssdlite import MobileViTSSDLiteForObjectDetection

MODEL_CLASSES: dict[str, type[MobileViTPreTrainedModel]] = {
    "image-classification": MobileViTForImageClassification,
    "image-segmentation": MobileViTForSemanticSegmentation,
    "image-feature-extraction": MobileViTModel,
    "object-detection": MobileViTSSDLiteForObjectDetection,
}


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy of a model for inference: each batch normalisation folded into its convolution, in channels_last.

    Outputs are equal up to rounding. The copy has other parameters than a checkpoint and refuses to be saved.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    for layer in folded.modules():
        if isinstance(layer, MobileViTConvLayer) and isinstance(layer.normalization, nn.BatchNorm2d):
            layer.convolution = fuse_conv_bn_eval(layer.convolution, layer.normalization)
            layer.normalization = None
    folded.save_pretrained = _refuse_to_save
    return folded.to(memory_format=torch.channels_last)


def _refuse_to_save(*args: Any, **kwargs: Any) -> None:
    raise ValueError(
        "save_pretrained: got a model folded for inference, expected one with its batch normalisations. "
        "Save the model it was made from."
    )


def pipeline(task: str, model: str | os.PathLike[str] | PreTrainedModel, **kwargs: Any) -> Pipeline:
    """`transformers.pipeline` with this package's classes, made ready for inference.

    Args:
        task: "image-classification", "object-detection", "image-segmentation" or "image-feature-extraction" for
            MobileViT; any other task and model runs as it does in transformers.
        model: A directory, a Hub id, or a model object. An object is left as it is: the pipeline works on a copy.
        kwargs: As for `transformers.pipeline`: `device`, `dtype`, `revision`, `token`, `model_kwargs`, `top_k`, ...

    Returns:
        transformers' own pipeline: same call, same outputs.

    Raises:
        ValueError, OSError: As `transformers.pipeline` does, for an unknown task or a model that isn't there.
    """
    if isinstance(model, str | os.PathLike):
        model = os.fspath(model)
        if task in MODEL_CLASSES:
            model, kwargs = _load(MODEL_CLASSES[task], model, kwargs)
    if isinstance(model, MobileViTPreTrainedModel):
        model = fold_batch_norm(model)
    return transformers.pipeline(task, model=model, **kwargs)


def _load(
    model_class: type[MobileViTPreTrainedModel], name: str, kwargs: dict[str, Any]
) -> tuple[str | PreTrainedModel, dict[str, Any]]:
    """Our model for a MobileViT checkpoint, with the arguments that remain; the name itself for any other."""
    hub_kwargs = {key: kwargs[key] for key in ("revision", "token", "trust_remote_code") if key in kwargs}
    config = AutoConfig.from_pretrained(name, **hub_kwargs)
    if config.model_type != model_class.config_class.model_type:
        return name, kwargs
    load_kwargs = {key: kwargs.pop(key) for key in ("dtype", "torch_dtype") if key in kwargs}
    load_kwargs |= kwargs.pop("model_kwargs", None) or {}
    model, report = model_class.from_pretrained(name, output_loading_info=True, **hub_kwargs, **load_kwargs)
    if missing := sorted(report["missing_keys"]):  # transformers would answer with random weights there
        raise ValueError(
            f"{name}: {len(missing)} of the model's parameters are not in the checkpoint, such as {missing[0]}. Give "
            "a checkpoint saved for this task."
        )
    kwargs.setdefault("image_processor", name)
    return model, kwargs
