"""Convert an official, timm or stock transformers checkpoint to a directory for `from_pretrained`.

The directory contains `config.json`, `model.safetensors` and `preprocessor_config.json` under stock names, so that
stock transformers and its pipelines load it, and for a detector the code of its classes. Origin, task, variant and
number of labels are inferred from parameter names and shapes (see `rules`). Pickled code is never executed.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import BaseImageProcessor

from ..io import move_into_place, temporary_folder, user_path
from ..modeling.configuration_mobilevit import VARIANTS, MobileViTConfig
from ..modeling.configuration_mobilevit_ssdlite import MobileViTSSDLiteConfig
from ..modeling.finite import check_finite_weights
from ..modeling.modeling_mobilevit import MobileViTPreTrainedModel
from ..tasks import TASKS, TaskName
from . import rules
from .labels import LABEL_SETS, SUGGESTED_LABELS, label_fields, read_labels, timm_label_names
from .preprocessing import ChannelOrder, input_side, make_processor
from .rules import Origin, StateDict, Translation
from .source import locate_weights, read_config, read_weights

ModelConfig = MobileViTConfig | MobileViTSSDLiteConfig


@dataclass(frozen=True)
class ConversionReport:
    """Result of `convert_checkpoint`.

    Attributes:
        origin: Origin of the source's parameter names.
        task: Pipeline task of the converted model; `"image-feature-extraction"` for a backbone without a head.
        variant: `"xxs"`, `"xs"` or `"s"`; None for other widths, which require a stock configuration.
        num_labels: Number of labels, without a detector's background; None without a head.
        channel_order: Channel order of the saved image processor's output.
        channel_order_assumed: Whether neither an argument nor the source determines the channel order.
        ignored: Parameters of the source that are on the ignore list.
        notes: Assumptions, as sentences for the user.
        output_dir: Directory of the converted checkpoint.
    """

    origin: Origin
    task: TaskName
    variant: str | None
    num_labels: int | None
    channel_order: ChannelOrder
    channel_order_assumed: bool
    ignored: tuple[str, ...]
    notes: tuple[str, ...]
    output_dir: Path


def convert_checkpoint(
    source: str | Path,
    output_dir: str | Path,
    *,
    labels: str | Path | Sequence[str] | None = None,
    channel_order: ChannelOrder | None = None,
    image_size: int | None = None,
) -> ConversionReport:
    """Convert a checkpoint to a directory with configuration, safetensors and image processor.

    Args:
        source: File or `https://` URL (official `.pt`, timm or stock `.pth`, `.bin`, `.safetensors`), or a directory
            with `model.safetensors` or `pytorch_model.bin`. `config.json` (timm, transformers, saved detectors) and
            `preprocessor_config.json` (transformers, saved detectors) next to the weights are used.
        output_dir: Directory to write, new or empty. On an error nothing is written.
        labels: Label names in the classifier's order, without a detector's background: a text file with one name per
            line, `"imagenet-1k"`, `"coco"`, or a sequence. Default: those of the source, else LABEL_0, LABEL_1, ...
        channel_order: Channel order of the model's input. Default: that of the source, else BGR for official and stock
            checkpoints, as Apple trained them, and RGB for timm.
        image_size: Side of the square training images in pixels; the resize before the crop is scaled with it.
            Default: that of the source, else 256 (segmentation: 512, detection: 320).

    Raises:
        FileNotFoundError: If the source or the file of labels does not exist.
        ValueError: If the source can't be downloaded, read safely or matched completely to a MobileViT, its weights
            are not finite, or an argument is invalid.
    """
    if channel_order not in (None, "bgr", "rgb"):
        raise ValueError(f"channel_order: got {channel_order!r}, expected 'bgr' or 'rgb'.")
    if image_size is not None and (not isinstance(image_size, int) or image_size < 32):
        raise ValueError(f"image_size: got {image_size!r}, expected an integer, at least 32 pixels.")
    output = _check_output(output_dir)
    names = None if labels is None else read_labels(labels)

    notes: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        file = locate_weights(source, Path(scratch))
        state_dict = rules.extract_state_dict(read_weights(file), notes)
        origin = rules.infer_origin(state_dict)
        translation = rules.translate(state_dict, origin)
        task = rules.infer_task(translation.tensors)
        source_config = read_config(file.parent, origin, task)
        processor, assumed = make_processor(origin, task, source_config, file.parent, channel_order, image_size, notes)

    if origin == "transformers" and source_config:
        config = _adapt_config(translation.tensors, task, source_config, names, image_size)
    else:
        config = _make_config(translation.tensors, task, source_config, names, input_side(processor), notes)
    with torch.random.fork_rng(devices=[]):  # keeps the caller's random state; all initial weights are overwritten
        model = TASKS[task].model_class(config)
    _load_weights(model, translation)
    check_finite_weights(model, file.name)
    _save(model, processor, output)
    return ConversionReport(
        origin=origin,
        task=task,
        variant=rules.match_variant(rules.infer_widths(translation.tensors)),
        num_labels=None if task == "image-feature-extraction" else config.num_labels,
        channel_order="bgr" if getattr(processor, "do_flip_channel_order", False) else "rgb",
        channel_order_assumed=assumed,
        ignored=translation.ignored,
        notes=tuple(notes),
        output_dir=output,
    )


def _make_config(
    tensors: StateDict,
    task: TaskName,
    source_config: dict[str, Any],
    names: list[str] | None,
    image_size: int,
    notes: list[str],
) -> ModelConfig:
    """Return the configuration of the variant whose widths the (translated) parameters have."""
    widths = rules.infer_widths(tensors)
    variant = rules.match_variant(widths)
    if variant is None:
        expected = "; ".join(f"{name} {rules.describe_widths(row)}" for name, row in VARIANTS.items())
        raise ValueError(
            f"The channel widths match no MobileViT: got {rules.describe_widths(widths)}, expected {expected}. For "
            "other widths, put the config.json of a saved transformers model next to the weights."
        )
    fields: dict[str, Any] = {"image_size": image_size}
    if task == "image-segmentation":
        fields |= {"output_stride": 16, "aspp_out_channels": rules.out_channels(tensors, rules.ASPP_PROJECTION)}
        notes.append(
            "Output stride assumed to be 16 and atrous rates 6, 12 and 18, as in the paper; weights don't determine "
            "them."
        )
    if task == "object-detection":
        notes.append("Anchors assumed to be those of the paper; weights don't determine them.")
    num_labels = rules.infer_num_labels(tensors, task)
    if names is None and num_labels is not None:
        names = timm_label_names(source_config, num_labels)
    if names is not None:
        fields |= label_fields(names, num_labels, task)
    elif num_labels is not None:
        fields["num_labels"] = num_labels
        suggested = SUGGESTED_LABELS.get(task)
        hint = f" or --labels {suggested}" if suggested and num_labels == len(LABEL_SETS[suggested]) else ""
        notes.append(
            f"Label names are missing and set to LABEL_0 to LABEL_{num_labels - 1}. Pass --labels FILE{hint}."
        )
    return TASKS[task].model_class.config_class.from_variant(variant, **fields)


def _adapt_config(
    tensors: StateDict, task: TaskName, source_config: dict[str, Any], names: list[str] | None, image_size: int | None
) -> ModelConfig:
    """Return the source's configuration, with label names and image size if given."""
    fields = {**source_config, "image_size": image_size} if image_size else source_config
    if task == "object-detection":  # the number of outputs depends on the anchors, which only the configuration has
        num_labels = _parse_config(task, fields).num_labels
    else:
        num_labels = rules.infer_num_labels(tensors, task)
    config = _parse_config(task, fields if names is None else {**fields, **label_fields(names, num_labels, task)})
    if num_labels not in (None, config.num_labels):
        raise ValueError(
            f"config.json next to the weights: got {config.num_labels} labels, expected {num_labels} as in the "
            "classifier. Fix or remove it."
        )
    return config


def _parse_config(task: TaskName, fields: dict[str, Any]) -> ModelConfig:
    try:
        return TASKS[task].model_class.config_class.from_dict(dict(fields))
    except (StrictDataclassError, AttributeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"config.json next to the weights: invalid ({reason}). Fix or remove it.") from error


def _load_weights(model: MobileViTPreTrainedModel, translation: Translation) -> None:
    """Load the parameters strictly: names and shapes equal those of the model."""
    tensors, sources = translation.tensors, translation.sources
    state_dict = model.state_dict()
    targets = rules.translate(state_dict, "transformers").sources  # translated name → name in the model
    unknown = sorted({sources[name] for name in tensors if name not in targets})
    if unknown:
        raise ValueError(
            f"{len(unknown)} of the checkpoint's parameters are not part of a MobileViT: "
            f"{rules.summarize_names(unknown)}. Pass a plain MobileViT (version 1), or remove them from the file if "
            "the model doesn't need them."
        )
    missing = [target for name, target in targets.items() if name not in tensors]
    if missing:
        raise ValueError(
            f"The checkpoint lacks {len(missing)} of the model's parameters: {rules.summarize_names(missing)}. Pass "
            "the complete state dict."
        )
    for name, target in targets.items():
        tensor, expected = tensors[name], state_dict[target]
        if tensor.shape != expected.shape:
            raise ValueError(
                f"{sources[name]}: got shape {tuple(tensor.shape)}, expected {tuple(expected.shape)} for {target}. "
                "Pass a MobileViT (version 1) as published, or put a matching config.json of transformers next to it."
            )
        if expected.is_floating_point() and not tensor.is_floating_point():
            raise ValueError(
                f"{sources[name]}: got {tensor.dtype}, expected floating point. Pass weights that are not quantized."
            )
    model.load_state_dict({target: tensors[name] for name, target in targets.items()})


def _check_output(output_dir: str | Path) -> Path:
    """Return the absolute path of a directory after checking that it is new or empty."""
    output = user_path(output_dir).resolve()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        reason = "is not empty" if output.is_dir() else "is a file"
        raise ValueError(f"{output_dir}: the output directory {reason}. Pass a new one, or remove it first.")
    return output


def _save(model: MobileViTPreTrainedModel, processor: BaseImageProcessor, output: Path) -> None:
    """Save model and image processor to a temporary directory, then rename it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(output.parent) as scratch:
        finished = scratch / output.name
        model.save_pretrained(finished)
        processor.save_pretrained(finished)
        move_into_place(finished, output)  # an existing folder is empty, see _check_output
