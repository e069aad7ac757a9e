"""transformers' pipelines on this package's faster models."""

import os
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoImageProcessor, Pipeline, PreTrainedModel

from .backends.formats import BACKENDS, check_request, dtype_name
from .model_sources import has_weights
from .modeling.fused_mobilevit import fold_batch_norm
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

# What goes to every load from the Hub.
LOADING_KWARGS = ("revision", "token", "trust_remote_code")


def pipeline(
    task: str,
    model: str | os.PathLike[str] | PreTrainedModel,
    *,
    backend: str = "torch",
    quantization: str | None = None,
    threads: int | None = None,
    compile: bool = False,
    **kwargs: Any,
) -> Pipeline:
    """`transformers.pipeline` with this package's classes, made ready for inference.

    Args:
        task: "image-classification", "object-detection", "image-segmentation" or "image-feature-extraction" for
            MobileViT; any other task and model runs as it does in transformers.
        model: A directory, a Hub id, or a model object. An object is left as it is: the pipeline works on a copy.
        backend: "torch", or "onnx", "openvino" or "executorch" on the CPU. The model is exported on first use, which
            takes half a minute, and kept in a cache; exported files that come with it are taken as they are.
        quantization: "int8" for an exported file that was quantized; see `mobilevit export`.
        threads: How many the engine uses. Default: torch's number, which follows the machine; with "torch" it sets
            that for the whole process.
        compile: With "torch", compile the model by its inductor, which needs a C++ compiler. The first image, and
            the first batch of another size, take half a minute.
        kwargs: As for `transformers.pipeline`: `device`, `dtype`, `revision`, `token`, `model_kwargs`, `top_k`, ...
            Engines take `dtype` "float32", their default, or "bfloat16" where they can.

    Returns:
        transformers' own pipeline: same call, same outputs. With an engine one object may be called from several
        threads at once.

    Raises:
        KeyError, ValueError, OSError: As `transformers.pipeline` does, for an unknown task or a model that isn't
            there; if the engine is not installed or can't run the model, or answers otherwise than the model.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(BACKENDS)}.")
    if threads is not None and threads < 1:
        raise ValueError(f"threads: got {threads}, expected at least 1. Leave it out for as many as the machine has.")
    if backend != "torch":
        if compile:
            raise ValueError(f"compile: got True for {backend}, which compiles by itself. Leave it out.")
        return _engine_pipeline(task, model, backend, quantization, threads, kwargs)
    if quantization is not None:
        raise ValueError(f"quantization: got {quantization!r} for torch, which has none. Use backend='openvino'.")
    if threads is not None:
        torch.set_num_threads(threads)
    if isinstance(model, str | os.PathLike):
        model = os.fspath(model)
        if task in MODEL_CLASSES:
            model, kwargs = _load(MODEL_CLASSES[task], model, kwargs)
    if isinstance(model, MobileViTPreTrainedModel):
        model = fold_batch_norm(model)
    pipe = transformers.pipeline(task, model=model, **kwargs)
    if compile:
        pipe.model.compile()
    return pipe


def _engine_pipeline(
    task: str,
    model: str | os.PathLike[str] | PreTrainedModel,
    backend: str,
    quantization: str | None,
    threads: int | None,
    kwargs: dict[str, Any],
) -> Pipeline:
    from .backends.cache import RECORD
    from .backends.loader import open_export, open_model
    from .backends.runtime import check_device

    dtype = dtype_name(kwargs.pop("dtype", None))
    check_request(backend, task, dtype, quantization)
    check_device(kwargs.get("device"))
    kwargs = {"device": "cpu", **kwargs}
    how: dict[str, Any] = {"backend": backend, "dtype": dtype, "quantization": quantization, "threads": threads}
    source, hub_kwargs = None, {key: kwargs[key] for key in LOADING_KWARGS if key in kwargs}
    if isinstance(model, str | os.PathLike):
        source = os.fspath(model)
        if Path(source, RECORD).is_file() and not has_weights(Path(source)):
            program = open_export(Path(source), task, **how)
            return transformers.pipeline(task, model=program, **{"image_processor": source, **kwargs})
        model, kwargs = load_model(task, source, kwargs)
    elif not isinstance(model, MODEL_CLASSES[task]):
        raise ValueError(f"model: got {type(model).__name__}, expected {MODEL_CLASSES[task].__name__} for {task}.")
    processor = kwargs.pop("image_processor", None)
    if processor is None:
        raise ValueError("image_processor: got none beside a model object, expected it or its directory. Pass it.")
    if isinstance(processor, str | os.PathLike):
        processor = AutoImageProcessor.from_pretrained(processor, **hub_kwargs)
    program = open_model(model, task, processor, source=source, hub_kwargs=hub_kwargs, **how)
    return transformers.pipeline(task, model=program, image_processor=processor, **kwargs)


def load_model(task: str, name: str, kwargs: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model of a checkpoint in float32, for an engine, with the arguments that remain.

    Raises:
        ValueError: If it is no MobileViT for the task.
    """
    model, kwargs = _load(MODEL_CLASSES[task], name, {**kwargs, "dtype": torch.float32})
    if isinstance(model, str):
        raise ValueError(f"{name}: not a MobileViT for {task}, which engines are for. Use backend='torch'.")
    return model.eval(), kwargs


def _load(
    model_class: type[MobileViTPreTrainedModel], name: str, kwargs: dict[str, Any]
) -> tuple[str | PreTrainedModel, dict[str, Any]]:
    """Our model for a MobileViT checkpoint, with the arguments that remain; the name itself for any other."""
    hub_kwargs = {key: kwargs[key] for key in LOADING_KWARGS if key in kwargs}
    config = AutoConfig.from_pretrained(name, **hub_kwargs)
    if config.model_type != model_class.config_class.model_type:
        return name, kwargs
    load_kwargs = {key: kwargs.pop(key) for key in ("dtype", "torch_dtype") if key in kwargs}
    load_kwargs |= kwargs.pop("model_kwargs", None) or {}
    try:
        model, report = model_class.from_pretrained(name, output_loading_info=True, **hub_kwargs, **load_kwargs)
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"{name}: its weights have other shapes than its config.json says, which has {config.num_labels} labels. "
            "Give the config.json that was saved with the weights."
        ) from error
    if missing := sorted(report["missing_keys"]):  # transformers would answer with random weights there
        raise ValueError(
            f"{name}: {len(missing)} of the model's parameters are not in the checkpoint, such as {missing[0]}. Give "
            "a checkpoint saved for this task."
        )
    kwargs.setdefault("image_processor", name)
    return model, kwargs
