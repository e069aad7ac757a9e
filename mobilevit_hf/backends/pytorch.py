"""Load checkpoints as torch models of this package, the source of every export."""

from typing import Any

import torch

from ..model_sources import checkpoint_errors, read_config
from ..modeling.finite import check_finite_weights
from ..modeling.modeling_mobilevit import MobileViTPreTrainedModel
from ..tasks import TASKS, TaskName, find_task

# Arguments of every load from the Hub.
HUB_ARGUMENTS = ("revision", "token", "trust_remote_code")


def load_model(
    task: TaskName, name: str, kwargs: dict[str, Any] | None = None
) -> tuple[MobileViTPreTrainedModel, dict[str, Any]]:
    """Load the MobileViT model of a checkpoint in float32, in evaluation mode; return it and the remaining `kwargs`.

    Args:
        name: Directory or Hub id.
        kwargs: Arguments of `pipeline`.

    Raises:
        ValueError: If the checkpoint is not a MobileViT for the task, or its weights are incomplete or not finite.
    """
    model, kwargs = load_if_mobilevit(task, name, {**(kwargs or {}), "dtype": torch.float32})
    if model is None:
        raise ValueError(f"{name}: got another architecture, expected a MobileViT for {task}. Use the torch backend.")
    return model.eval(), kwargs


def load_if_mobilevit(
    task: TaskName, name: str, kwargs: dict[str, Any]
) -> tuple[MobileViTPreTrainedModel | None, dict[str, Any]]:
    """Load a checkpoint if it is a MobileViT for the task; otherwise return None and `kwargs` unchanged.

    Args, Raises: As `load_model`, which also sets dtype and mode.
    """
    model_class = TASKS[task].model_class
    hub_kwargs = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
    config = read_config(name, **hub_kwargs)
    if config.model_type != model_class.config_class.model_type:
        if config.model_type in {row.model_class.config_class.model_type for row in TASKS.values()}:
            find_task(config, name, [task])  # raises for another task
        return None, kwargs
    kwargs = dict(kwargs)
    load_kwargs = {key: kwargs.pop(key) for key in ("dtype", "torch_dtype") if key in kwargs}
    load_kwargs |= kwargs.pop("model_kwargs", None) or {}
    try:
        with checkpoint_errors(name):
            model, report = model_class.from_pretrained(name, output_loading_info=True, **hub_kwargs, **load_kwargs)
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"{name}: the shapes of the weights don't match config.json, which has {config.num_labels} labels. "
            "Use the config.json that was saved with the weights."
        ) from error
    if missing := sorted(report["missing_keys"]):  # transformers would initialize them at random
        raise ValueError(
            f"{name}: {len(missing)} parameters are missing from the checkpoint, such as {missing[0]}. "
            "Pass a checkpoint that was saved for this task."
        )
    unexpected = sorted(report["unexpected_keys"])
    if task == "image-feature-extraction":  # a backbone has no place for the head of its checkpoint
        unexpected = [key for key in unexpected if not key.startswith(("classifier.", "segmentation_head."))]
    if unexpected:  # transformers would drop them
        raise ValueError(
            f"{name}: {len(unexpected)} parameters of the checkpoint are not part of the model that config.json "
            f"describes, such as {unexpected[0]}. Use the config.json that was saved with the weights."
        )
    check_finite_weights(model, name)
    kwargs.setdefault("image_processor", name)
    return model, kwargs
