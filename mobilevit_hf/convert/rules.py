"""Translate parameter names: one ordered rule table and one ignore list per origin.

Origins are the official code (`apple/ml-cvnets`), `timm` and stock `transformers`, whose names this package uses too.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ..modeling.configuration_mobilevit import VARIANTS
from ..modeling.configuration_mobilevit_ssdlite import ANCHOR_RATIOS, FEATURE_STRIDES, GLOBAL_STRIDE
from ..modeling.modeling_mobilevit_ssdlite import level_name
from ..tasks import TaskName

Origin = Literal["official", "timm", "transformers"]
StateDict = dict[str, Tensor]

# Keys under which training scripts save the state dict; averaged (EMA) weights take precedence.
AVERAGED_WRAPPERS = ("state_dict_ema", "ema_state_dict", "model_ema", "ema")
WRAPPERS = (*AVERAGED_WRAPPERS, "state_dict", "model_state_dict", "model", "module", "net", "weights")
COMPILED = "_orig_mod."  # part of the names of modules that torch.compile wraps
MAX_WRAPPERS = 3  # nesting depth; a pickled dict can contain itself

# A parameter of the first block, which distinguishes the origins. `_find_prefixes` finds what precedes it.
SIGNATURES: dict[Origin, str] = {
    "official": r"^(encoder\.)?layer_1\.0\.block\.exp_1x1\.",
    "timm": r"^stages\.0\.0\.conv1_1x1\.",
    "transformers": r"^(mobilevit\.|backbone\.)?encoder\.layer\.0\.layer\.0\.expand_1x1\.",
}

# All rules (pattern, replacement) are applied to every name, in this order. `translate` then splits the fused
# projections `qkv` into query, key and value.
RULES: dict[Origin, tuple[tuple[str, str], ...]] = {
    "official": (
        # The classification network is the encoder of detectors and segmentation models.
        (r"^encoder\.", ""),
        (r"^conv_1\.", "mobilevit.conv_stem."),
        (r"^layer_1\.", "mobilevit.encoder.layer.0.layer."),
        (r"^layer_2\.", "mobilevit.encoder.layer.1.layer."),
        (r"^layer_3\.0\.", "mobilevit.encoder.layer.2.downsampling_layer."),
        (r"^layer_3\.1\.", "mobilevit.encoder.layer.2."),
        (r"^layer_4\.0\.", "mobilevit.encoder.layer.3.downsampling_layer."),
        (r"^layer_4\.1\.", "mobilevit.encoder.layer.3."),
        (r"^layer_5\.0\.", "mobilevit.encoder.layer.4.downsampling_layer."),
        (r"^layer_5\.1\.", "mobilevit.encoder.layer.4."),
        (r"^conv_1x1_exp\.", "mobilevit.conv_1x1_exp."),
        (r"^classifier\.fc\.", "classifier."),
        (r"^seg_head\.aspp\.aspp_layer\.", "segmentation_head.aspp."),
        (r"^seg_head\.classifier\.", "segmentation_head.classifier."),
        (r"\.aspp_pool\.", "."),
        # SSDLite: extra layers, and one head per level
        (r"^extra_layers\.os_-1\.1\.", f"head.extra_layers.{level_name(GLOBAL_STRIDE)}.pointwise."),
        (r"^extra_layers\.os_(\d+)\.", r"head.extra_layers.stride_\1."),
        *((rf"^ssd_heads\.{i}\.", f"head.level_heads.{level_name(s)}.") for i, s in enumerate(FEATURE_STRIDES)),
        (r"\.proj_layer\.", ".projection."),
        (r"\.loc_cls_layer\.(?=block\.)", ".predictor."),
        (r"\.loc_cls_layer\.pw_conv\.", ".predictor."),
        (r"\.(loc_cls_layer\.)?dw_conv\.", ".depthwise."),
        (r"\.pw_conv\.", ".pointwise."),
        # Inverted residual block
        (r"\.block\.exp_1x1\.", ".expand_1x1."),
        (r"\.block\.conv_3x3\.", ".conv_3x3."),
        (r"\.block\.red_1x1\.", ".reduce_1x1."),
        # MobileViT block
        (r"\.local_rep\.conv_3x3\.", ".conv_kxk."),
        (r"\.local_rep\.conv_1x1\.", ".conv_1x1."),
        (r"\.global_rep\.(\d+)\.(weight|bias)$", r".layernorm.\2"),
        (r"\.global_rep\.(\d+)\.", r".transformer.layer.\1."),
        (r"\.pre_norm_mha\.0\.", ".layernorm_before."),
        (r"\.pre_norm_mha\.1\.qkv_proj\.", ".attention.attention.qkv."),
        (r"\.pre_norm_mha\.1\.out_proj\.", ".attention.output.dense."),
        (r"\.pre_norm_ffn\.0\.", ".layernorm_after."),
        (r"\.pre_norm_ffn\.1\.", ".intermediate.dense."),
        (r"\.pre_norm_ffn\.4\.", ".output.dense."),
        (r"\.conv_proj\.", ".conv_projection."),
        # Convolution layer
        (r"\.block\.conv\.", ".convolution."),
        (r"\.block\.norm\.", ".normalization."),
    ),
    "timm": (
        (r"^stem\.", "mobilevit.conv_stem."),
        (r"^stages\.([01])\.", r"mobilevit.encoder.layer.\1.layer."),
        (r"^stages\.([234])\.0\.", r"mobilevit.encoder.layer.\1.downsampling_layer."),
        (r"^stages\.([234])\.1\.", r"mobilevit.encoder.layer.\1."),
        (r"^final_conv\.", "mobilevit.conv_1x1_exp."),
        (r"^head\.fc\.", "classifier."),
        # Inverted residual block
        (r"\.conv1_1x1\.", ".expand_1x1."),
        (r"\.conv2_kxk\.", ".conv_3x3."),
        (r"\.conv3_1x1\.", ".reduce_1x1."),
        # MobileViT block
        (r"\.conv_1x1\.weight$", ".conv_1x1.convolution.weight"),
        (r"\.transformer\.(\d+)\.", r".transformer.layer.\1."),
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.attn\.qkv\.", ".attention.attention.qkv."),
        (r"\.attn\.proj\.", ".attention.output.dense."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
        (r"\.norm\.", ".layernorm."),
        (r"\.conv_proj\.", ".conv_projection."),
        (r"\.conv_fusion\.", ".fusion."),
        # Convolution layer
        (r"\.conv\.", ".convolution."),
        (r"\.bn\.", ".normalization."),
    ),
    # A model without a head is saved without the prefix, a detector with another one.
    "transformers": ((r"^(backbone\.)?(?=(conv_stem|encoder|conv_1x1_exp)\.)", "mobilevit."),),
}

# Tensors of a training to ignore: the counter of torch.optim.swa_utils.AveragedModel, and those of losses and metrics,
# such as the class weights in a Lightning module's `criterion.weight`.
TRAINING = (r"^n_averaged$", r"^\w*(criterion|loss|metric|acc)\w*\.")
# Parameters to ignore. Any other parameter that the model doesn't have is an error.
IGNORED: dict[Origin, tuple[str, ...]] = {
    # The auxiliary head is used in training only; the encoder's classifier remains from pretraining.
    "official": (*TRAINING, r"^seg_head\.aux_head\.", r"^encoder\.(conv_1x1_exp|classifier)\."),
    "timm": TRAINING,
    "transformers": TRAINING,
}

# Prefix of the (translated) parameters of a task's head. A model without any of these is a backbone.
HEAD_PREFIXES: dict[TaskName, str] = {
    "image-segmentation": "segmentation_head.",
    "object-detection": "head.level_heads.",
    "image-classification": "classifier.",
}

# Layer whose number of outputs determines the number of labels.
CLASSIFIERS: dict[TaskName, str] = {
    "image-segmentation": "segmentation_head.classifier.convolution",
    "object-detection": f"head.level_heads.{level_name(FEATURE_STRIDES[0])}.predictor.convolution",
    "image-classification": "classifier",
}
ASPP_PROJECTION = "segmentation_head.aspp.project.convolution"
ANCHORS_PER_CELL = 2 + 2 * len(ANCHOR_RATIOS[0])


@dataclass(frozen=True)
class Translation:
    """State dict with the parameter names of this package."""

    tensors: StateDict  # names in the backbone have the prefix `mobilevit.` for all tasks
    sources: dict[str, str]  # name here → name in the source
    ignored: tuple[str, ...]  # names in the source that are on the ignore list


def extract_state_dict(checkpoint: Any, notes: list[str]) -> StateDict:
    """Return the state dict in a checkpoint, without the dicts around it and the prefix of the model's names."""
    depth = 0
    while not _is_state_dict(checkpoint):
        entries = checkpoint if isinstance(checkpoint, Mapping) else {}
        key = next((key for key in WRAPPERS if isinstance(entries.get(key), Mapping)), None)
        depth += 1
        if key is None or depth > MAX_WRAPPERS:
            raise ValueError(
                f"No state dict found: got {summarize_names(map(str, entries)) or type(checkpoint).__name__}, "
                "expected names and tensors. Save the weights with torch.save(model.state_dict(), file) and convert "
                "that file."
            )
        if key in AVERAGED_WRAPPERS:
            notes.append(f"Using the averaged (EMA) weights of the file, saved under {key!r}.")
        checkpoint = entries[key]
    tensors = {name.replace(COMPILED, ""): (tensor, name) for name, tensor in checkpoint.items()}
    prefix, *others = _find_prefixes(tensors)
    if others:
        notes.append(
            f"Using the weights under {prefix!r}, not those of a model under {' or '.join(map(repr, others))}."
        )
        nested = tuple(other for other in others if other.startswith(prefix))
        tensors = {name: tensors[name] for name in tensors if name.startswith(prefix) and not name.startswith(nested)}
    state_dict: StateDict = {}
    for name, (tensor, source) in tensors.items():
        _add(state_dict, name.removeprefix(prefix), tensor, source)
    return state_dict


def _find_prefixes(names: Collection[str]) -> list[str]:
    """Return what precedes the names of MobileViT's parameters, averaged (EMA) models first; "" if there are none.

    Wrappers such as DataParallel (`module.`) or a Lightning module (`net.`, `model.backbone.`) prepend the path of the
    model.
    """
    prefixes = set()
    for signature in SIGNATURES.values():
        pattern = re.compile(rf"^(?P<prefix>(?:\w+\.)*?){signature.removeprefix('^')}")
        prefixes |= {match["prefix"] for match in map(pattern.match, names) if match}
    return sorted(prefixes, key=lambda prefix: ("ema" not in prefix, prefix)) or [""]


def _is_state_dict(checkpoint: Any) -> bool:
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        return False
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in checkpoint.items())


def infer_origin(names: Collection[str]) -> Origin:
    """Infer the origin from parameter names."""
    for origin, signature in SIGNATURES.items():
        if any(re.search(signature, name) for name in names):
            return origin
    raise ValueError(
        f"No MobileViT weights found: got names such as {summarize_names(names)}, expected those of the official code "
        "(layer_1.0.block...), timm (stages.0.0...) or transformers (encoder.layer.0...). Pass the state dict of a "
        "complete MobileViT (version 1) model."
    )


def translate(state_dict: Mapping[str, Tensor], origin: Origin) -> Translation:
    """Rename all parameters by the origin's rules and split fused projections into query, key and value.

    Names without a rule are kept; `conversion` compares all names with those of the model.
    """
    tensors: StateDict = {}
    sources: dict[str, str] = {}
    ignored: list[str] = []
    for source, tensor in state_dict.items():
        if any(re.search(pattern, source) for pattern in IGNORED[origin]):
            ignored.append(source)
            continue
        name = source
        for pattern, replacement in RULES[origin]:
            name = re.sub(pattern, replacement, name)
        for part_name, part in _split_qkv(name, tensor, source).items():
            _add(tensors, part_name, part, source)
            sources[part_name] = source
    return Translation(tensors, sources, tuple(ignored))


def _split_qkv(name: str, tensor: Tensor, source: str) -> StateDict:
    """Return the tensor by name; for a fused projection (3·d, ...) its query, key and value (d, ...)."""
    if ".attention.attention.qkv." not in name:
        return {name: tensor}
    if tensor.ndim == 0 or tensor.shape[0] % 3:
        raise ValueError(f"{source}: got shape {tuple(tensor.shape)}, expected a first dimension divisible by 3.")
    parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
    return {name.replace(".qkv.", f".{part}."): piece for part, piece in parts}


def _add(state_dict: StateDict, name: str, tensor: Tensor, source: str) -> None:
    if name in state_dict:
        raise ValueError(f"{source}: got a second tensor for {name}. Save the state dict of one model.")
    state_dict[name] = tensor


def infer_task(tensors: Mapping[str, Tensor]) -> TaskName:
    """Infer the task from the head of (translated) parameters."""
    for task, prefix in HEAD_PREFIXES.items():
        if any(name.startswith(prefix) for name in tensors):
            return task
    return "image-feature-extraction"


def infer_num_labels(tensors: Mapping[str, Tensor], task: TaskName) -> int | None:
    """Infer the number of labels from the shape of the (translated) classifier; None without a head.

    Assumes the paper's anchors for a detector. Its background is not a label.
    """
    if task not in CLASSIFIERS:
        return None
    classifier = CLASSIFIERS[task]
    outputs = out_channels(tensors, classifier)
    if task != "object-detection":
        return outputs
    num_labels = outputs // ANCHORS_PER_CELL - 4 - 1
    if outputs % ANCHORS_PER_CELL or num_labels < 1:
        raise ValueError(
            f"{classifier}: got {outputs} outputs, expected a box, the background and at least one class for each of "
            f"the paper's {ANCHORS_PER_CELL} anchors. For other anchors, put the detector's config.json next to the "
            "weights."
        )
    return num_labels


def infer_widths(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Infer `hidden_sizes` and `neck_hidden_sizes` of (translated) parameters.

    The latter lacks its last element, that of `conv_1x1_exp`, which segmentation models don't have.
    """
    encoder = "mobilevit.encoder.layer"
    layers = {
        "hidden_sizes": [f"{encoder}.{i}.conv_1x1" for i in (2, 3, 4)],
        "neck_hidden_sizes": [
            "mobilevit.conv_stem",
            *(f"{encoder}.{i}.layer.0.reduce_1x1" for i in (0, 1)),
            *(f"{encoder}.{i}.downsampling_layer.reduce_1x1" for i in (2, 3, 4)),
        ],
    }
    return {
        field: tuple(out_channels(tensors, f"{name}.convolution") for name in names) for field, names in layers.items()
    }


def match_variant(widths: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return the variant of the widths that `infer_widths` returns, None if there is none."""
    for variant, row in VARIANTS.items():
        if all(tuple(row[field])[: len(channels)] == channels for field, channels in widths.items()):
            return variant
    return None


def describe_widths(widths: Mapping[str, Any]) -> str:
    """Format the widths of `infer_widths` or of a variant for an error message."""
    return f"{list(widths['neck_hidden_sizes'][:6])} and {list(widths['hidden_sizes'])}"


def out_channels(tensors: Mapping[str, Tensor], layer: str) -> int:
    """Return the number of output channels of a layer of (translated) parameters."""
    name = f"{layer}.weight"
    if name not in tensors or tensors[name].ndim == 0:
        raise ValueError(
            f"{name}: missing or invalid in the checkpoint. Pass the state dict of a complete MobileViT (version 1)."
        )
    return tensors[name].shape[0]


def summarize_names(names: Iterable[str], limit: int = 4) -> str:
    """Return the first names and the number of the others for an error message."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
