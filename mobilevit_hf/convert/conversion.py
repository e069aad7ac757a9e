"""Turn an official, timm or stock transformers checkpoint into a directory that `from_pretrained` loads.

The directory holds `config.json`, `model.safetensors` and `preprocessor_config.json` under stock names, so stock
transformers and its pipelines load it too; a detector's also the code of its classes, which transformers does not
have. Whose checkpoint it is, and which task, variant and number of labels, is read off the parameters' names and
shapes (see `convert_rules.py`); nothing pickled is ever executed.
"""

import http.client
import json
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

import safetensors
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from transformers import AutoImageProcessor, BaseImageProcessor

from ..io import user_path
from ..modeling.configuration_mobilevit import VARIANTS, MobileViTConfig
from ..modeling.configuration_mobilevit_ssdlite import MobileViTSSDLiteConfig
from ..modeling.image_processing_mobilevit_ssdlite import MobileViTSSDLiteImageProcessor
from ..modeling.modeling_mobilevit import (
    MobileViTForImageClassification,
    MobileViTForSemanticSegmentation,
    MobileViTModel,
    MobileViTPreTrainedModel,
)
from ..modeling.modeling_mobilevit_ssdlite import MobileViTSSDLiteForObjectDetection
from ..tasks import TaskName
from .labels import LABEL_SETS, SUGGESTED_LABELS, name_fields, read_labels, told_names
from .rules import (
    ChannelOrder,
    Origin,
    StateDict,
    Translation,
    describe_widths,
    find_aspp_channels,
    find_num_labels,
    find_origin,
    find_task,
    find_variant,
    find_widths,
    listing,
    official_processor,
    timm_preprocessing,
    translate,
    unwrap,
)

MODELS: dict[TaskName, type[MobileViTPreTrainedModel]] = {
    "image-classification": MobileViTForImageClassification,
    "image-segmentation": MobileViTForSemanticSegmentation,
    "object-detection": MobileViTSSDLiteForObjectDetection,
    "image-feature-extraction": MobileViTModel,
}

# Where the weights lie in a saved directory, in the order of preference.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

# Fields of a saved configuration or preprocessor that point at code.
CODE_POINTERS = ("auto_map", "custom_pipelines")

# The largest MobileViT with its optimizer's state takes some 100 MB.
MAX_DOWNLOAD_BYTES = 1 << 30
DOWNLOAD_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class ConversionReport:
    """What was converted and what was decided on the way.

    Attributes:
        origin: Whose parameter names the source has.
        task: The pipeline task of the converted model; `"image-feature-extraction"` is a backbone without a head.
        variant: `"xxs"`, `"xs"` or `"s"`; None for other widths, which a stock configuration can describe.
        num_labels: The number of labels, None without a head; a detector's background is not among them.
        channel_order: The order in which the written preprocessor hands colors to the model.
        channel_order_assumed: Whether that is a guess, neither given nor told by the source.
        ignored: The source's parameters that were left behind because they are on the ignore list.
        notes: Plain sentences about assumptions, to be shown to the user.
        output_dir: Where the converted checkpoint lies.
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
    """Convert a checkpoint to a directory with config, safetensors and preprocessor.

    Args:
        source: A file or `https://` URL (official `.pt`, timm or stock `.pth`, `.bin`, `.safetensors`), or a directory
            with `model.safetensors` or `pytorch_model.bin`. A `config.json` of timm, transformers or a saved detector
            and a stock or detector's `preprocessor_config.json` beside the weights are used.
        output_dir: The directory to write, new or empty. It appears whole or not at all.
        labels: The labels' names in the classifier's order, without a background for a detector: a text file with one
            name a line, `"imagenet-1k"`, `"coco"`, or the names themselves. Default: those the source tells, else
            LABEL_0, LABEL_1, ...
        channel_order: The order in which the model takes colors. Default: what the source tells, else BGR for
            official and stock checkpoints, as Apple's were trained, and RGB for timm's.
        image_size: Side of the square images the model was trained on, in pixels; the shorter side before the crop
            keeps its ratio to it. Default: what the source tells, else 256 (segmentation: 512, detection: 320).

    Raises:
        FileNotFoundError: If the source, or the file of labels, does not exist.
        ValueError: If the source can't be read safely, downloaded or fully matched to a MobileViT, or if an argument
            can't be used.
    """
    if channel_order not in (None, "bgr", "rgb"):
        raise ValueError(f"channel_order: got {channel_order!r}, expected 'bgr' or 'rgb'.")
    if image_size is not None and (not isinstance(image_size, int) or image_size < 32):
        raise ValueError(f"image_size: got {image_size!r}, expected a number of pixels from 32, such as 256.")
    output = _check_output(output_dir)
    names = None if labels is None else read_labels(labels)

    notes: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        file = _locate(source, Path(scratch))
        state_dict = unwrap(_read_file(file), notes)
        origin = find_origin(state_dict)
        translation = translate(state_dict, origin)
        task = find_task(translation.tensors)
        facts = _read_facts(file.parent, origin, task)
        processor, told_order = _make_processor(origin, task, facts, file.parent, channel_order, image_size, notes)

    if origin == "transformers" and facts:
        config = _adapt_config(translation.tensors, task, facts, names, image_size)
    else:
        config = _make_config(translation.tensors, task, facts, names, _input_side(processor), notes)
    with torch.random.fork_rng(devices=[]):  # drawn weights are overwritten: leave the caller's random state alone
        model = MODELS[task](config)
    _fill(model, translation)
    _write(model, processor, output)
    return ConversionReport(
        origin=origin,
        task=task,
        variant=find_variant(find_widths(translation.tensors)),
        num_labels=None if task == "image-feature-extraction" else config.num_labels,
        channel_order="bgr" if getattr(processor, "do_flip_channel_order", False) else "rgb",
        channel_order_assumed=not told_order,
        ignored=translation.ignored,
        notes=tuple(notes),
        output_dir=output,
    )


# --- reading the source ----------------------------------------------------------------------------------------------


def _locate(source: str | Path, scratch: Path) -> Path:
    """The file with the weights, downloaded into `scratch` if the source is a URL."""
    url = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", str(source))
    if url and url[1].lower() != "https":
        raise ValueError(f"{source}: got {url[1]}://, expected https://, a file or a directory.")
    if url:
        return _download(str(source), scratch)
    path = user_path(source)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{source}: no such file or directory. Give a checkpoint's path or https:// URL.")
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"{source}: neither {' nor '.join(WEIGHT_FILES)} in it. Give the checkpoint file itself.")


class _HttpsRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https:// only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme != "https":
            raise urllib.error.URLError(f"it redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_opener = urllib.request.build_opener(_HttpsRedirects)


def _download(url: str, folder: Path) -> Path:
    """Download a file of at most MAX_DOWNLOAD_BYTES into the folder; its suffix is that of the URL's path."""
    file = folder / f"checkpoint{PurePosixPath(urlsplit(url).path).suffix}"
    size = 0
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "mobilevit-hf"})
        with _opener.open(request, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response, file.open("wb") as target:
            expected = response.headers.get("Content-Length")
            while chunk := response.read(1 << 20):
                size += len(chunk)
                if size > MAX_DOWNLOAD_BYTES:
                    raise ValueError(f"it is larger than {MAX_DOWNLOAD_BYTES >> 20} MiB, no MobileViT checkpoint is")
                target.write(chunk)
        if expected is not None and size != int(expected):
            raise ValueError(f"it broke off after {size} of {expected} bytes")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ValueError(
            f"{url}: could not be downloaded ({error}). Check the URL, or download the file and give its path."
        ) from error
    return file


def _read_file(file: Path) -> Any:
    """The content of a safetensors file, or of a PyTorch file without running code from it."""
    with file.open("rb") as stream:  # a file that can't be opened is not a damaged one
        try:
            if file.suffix.lower() == ".safetensors":
                return load_file(file)
            return torch.load(stream, map_location="cpu", weights_only=True)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{file.name}: not a safetensors file ({error}).") from error
        except Exception as error:  # a damaged or foreign file makes the unpickler raise nearly anything
            code = re.search(r"GLOBAL ([\w.]+)", str(error))
            if code:
                raise ValueError(
                    f"{file.name}: holds pickled Python code or objects ({code[1]}), which are never loaded. If you "
                    "trust the file, save its weights with torch.save(model.state_dict(), file) and convert that."
                ) from error
            raise ValueError(
                f"{file.name}: not a PyTorch checkpoint, or a damaged one. Give a state dict saved with torch.save or "
                "as safetensors."
            ) from error


def _read_facts(folder: Path, origin: Origin, task: TaskName) -> dict[str, Any]:
    """What `config.json` beside the weights says, if it is of their origin; timm's `pretrained_cfg` unfolded."""
    path = folder / "config.json"
    if origin == "official" or not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError(f"got a {type(facts).__name__}, expected an object")
    except ValueError as error:
        raise ValueError(f"{path}: not a readable configuration ({error}). Mend it or move it away.") from error
    if origin == "timm":
        trained = facts.get("pretrained_cfg")
        return {**facts, **(trained if isinstance(trained, dict) else {})} if "architecture" in facts else {}
    expected = MODELS[task].config_class.model_type
    if facts.get("model_type") != expected:
        raise ValueError(
            f"{path}: got model_type {facts.get('model_type')!r}, expected {expected!r}. Move it away if it does not "
            "belong to the weights."
        )
    _forget_code(facts)
    _forget_code(facts.get("backbone_config"))
    return facts


def _forget_code(fields: Any) -> None:
    """Remove the fields that point at code, which does not come along."""
    if isinstance(fields, dict):
        for name in CODE_POINTERS:
            fields.pop(name, None)


# --- preprocessor ----------------------------------------------------------------------------------------------------


def _make_processor(
    origin: Origin,
    task: TaskName,
    facts: Mapping[str, Any],
    folder: Path,
    channel_order: ChannelOrder | None,
    image_size: int | None,
    notes: list[str],
) -> tuple[BaseImageProcessor, bool]:
    """The image processor for the source, and whether its channel order is known rather than assumed."""
    if origin == "transformers" and (folder / "preprocessor_config.json").is_file():
        return _adapt_processor(folder, task, channel_order, image_size), True
    if origin == "timm":
        if not facts:
            notes.append(
                f"Preprocessing taken as timm's default for MobileViT (RGB, {image_size or 256} px, center crop of "
                "90 %, bicubic, no mean and std), as nothing beside the file says otherwise."
            )
        return timm_preprocessing(facts, channel_order or "rgb", image_size).make_processor(), True
    if channel_order is None:
        notes.append(
            "Channel order taken as BGR, as the published official checkpoints were trained; pass --channel-order rgb "
            "if yours was not."
        )
    return official_processor(task, channel_order or "bgr", image_size), channel_order is not None


def _adapt_processor(
    folder: Path, task: TaskName, channel_order: ChannelOrder | None, image_size: int | None
) -> BaseImageProcessor:
    """The source's own processor, with the channel order and image size that were asked for."""
    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'preprocessor_config.json'}: not a stock image processor ({_first_line(error)}). Mend it or "
            "move it away."
        ) from error
    if task == "object-detection" and not isinstance(processor, MobileViTSSDLiteImageProcessor):
        raise ValueError(
            f"{folder / 'preprocessor_config.json'}: got a {type(processor).__name__}, expected "
            f"{MobileViTSSDLiteImageProcessor.__name__}, which the detector needs. Mend it or move it away."
        )
    _forget_code(vars(processor))
    if channel_order and hasattr(processor, "do_flip_channel_order"):
        processor.do_flip_channel_order = channel_order == "bgr"
    elif channel_order == "bgr":
        raise ValueError(
            f"channel_order: got 'bgr', but the source's {type(processor).__name__} can't turn channels around. Leave "
            "it out, or move its preprocessor_config.json away."
        )
    if image_size:
        factor = image_size / _input_side(processor)
        processor.size, processor.crop_size = (
            size and type(size)(**{edge: round(pixels * factor) for edge, pixels in size})
            for size in (processor.size, processor.crop_size)
        )
    return processor


def _input_side(processor: BaseImageProcessor) -> int:
    """The height of the images that the processor makes; their shorter side where it does not crop."""
    crop = processor.crop_size if processor.do_center_crop else None
    size = processor.size
    return crop.height if crop else size.height or size.shortest_edge or size.longest_edge


# --- configuration, weights, output ----------------------------------------------------------------------------------


def _make_config(
    tensors: StateDict,
    task: TaskName,
    facts: Mapping[str, Any],
    names: list[str] | None,
    image_size: int,
    notes: list[str],
) -> MobileViTConfig | MobileViTSSDLiteConfig:
    """The configuration of the variant that the (translated) parameters are of."""
    widths = find_widths(tensors)
    variant = find_variant(widths)
    if variant is None:
        known = "; ".join(f"{name} {describe_widths(row)}" for name, row in VARIANTS.items())
        raise ValueError(
            f"The channel widths fit no MobileViT: got {describe_widths(widths)}, expected {known}. For other widths, "
            "put the config.json of a saved transformers model beside the weights."
        )
    fields: dict[str, Any] = {"image_size": image_size}
    if task == "image-segmentation":
        fields |= {"output_stride": 16, "aspp_out_channels": find_aspp_channels(tensors)}
        notes.append(
            "Output stride taken as 16 and atrous rates as 6, 12 and 18, as in the paper: weights do not tell."
        )
    if task == "object-detection":
        notes.append("Anchors taken as in the paper: weights do not tell.")
    num_labels = find_num_labels(tensors, task)
    if names is None and num_labels is not None:
        names = told_names(facts, num_labels)
    if names is not None:
        fields |= name_fields(names, num_labels, task)
    elif num_labels is not None:
        fields["num_labels"] = num_labels
        suggested = SUGGESTED_LABELS.get(task)
        hint = f" or --labels {suggested}" if suggested and num_labels == len(LABEL_SETS[suggested]) else ""
        notes.append(
            f"The labels' names are not known and became LABEL_0 to LABEL_{num_labels - 1}; pass --labels FILE{hint}."
        )
    return MODELS[task].config_class.from_variant(variant, **fields)


def _adapt_config(
    tensors: StateDict, task: TaskName, facts: Mapping[str, Any], names: list[str] | None, image_size: int | None
) -> MobileViTConfig | MobileViTSSDLiteConfig:
    """The source's own configuration, with the labels and image size that were asked for."""
    fields = {**facts, "image_size": image_size} if image_size else facts
    if task == "object-detection":  # it tells the anchors too, of which weights show only how many outputs they have
        num_labels = _read_config(task, fields).num_labels
    else:
        num_labels = find_num_labels(tensors, task)
    config = _read_config(task, fields if names is None else {**fields, **name_fields(names, num_labels, task)})
    if num_labels not in (None, config.num_labels):
        raise ValueError(
            f"config.json beside the weights has {config.num_labels} labels, the classifier {num_labels}. Mend it, or "
            "move it away."
        )
    return config


def _read_config(task: TaskName, fields: Mapping[str, Any]) -> MobileViTConfig | MobileViTSSDLiteConfig:
    """The configuration of the task's model with the fields that a file has."""
    try:
        return MODELS[task].config_class.from_dict(dict(fields))
    except (StrictDataclassError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"config.json beside the weights can't be used: {error}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _fill(model: MobileViTPreTrainedModel, translation: Translation) -> None:
    """Load the parameters: each has a place of its shape, and none of the model's is left out."""
    tensors, sources = translation.tensors, translation.sources
    own = model.state_dict()
    places = translate(own, "transformers").sources
    unknown = sorted({sources[name] for name in tensors if name not in places})
    if unknown:
        raise ValueError(
            f"{len(unknown)} of the checkpoint's parameters have no place in a MobileViT: {listing(unknown)}. Give a "
            "plain MobileViT (version 1), or drop them from the file if they are not part of the model."
        )
    missing = [place for name, place in places.items() if name not in tensors]
    if missing:
        raise ValueError(
            f"The checkpoint lacks {len(missing)} of the model's parameters: {listing(missing)}. Give the whole state "
            "dict."
        )
    for name, place in places.items():
        tensor, expected = tensors[name], own[place]
        if tensor.shape != expected.shape:
            raise ValueError(
                f"{sources[name]}: got shape {tuple(tensor.shape)}, expected {tuple(expected.shape)} for {place}. "
                "Give a MobileViT (version 1) as published, or a config.json of transformers that fits beside it."
            )
        if expected.is_floating_point() and not tensor.is_floating_point():
            raise ValueError(
                f"{sources[name]}: got {tensor.dtype}, expected floating point. Give weights that are not quantized."
            )
    model.load_state_dict({place: tensors[name] for name, place in places.items()})


def _check_output(output_dir: str | Path) -> Path:
    """The absolute path of a directory that is not there yet, or empty."""
    output = user_path(output_dir).resolve()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        what = "is not empty" if output.is_dir() else "is a file"
        raise ValueError(f"{output_dir}: the output directory {what}. Name a new one, or remove it first.")
    return output


def _write(model: MobileViTPreTrainedModel, processor: BaseImageProcessor, output: Path) -> None:
    """Save both beside the output directory and then move them there in one step."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
        finished = Path(scratch) / output.name
        model.save_pretrained(finished)
        processor.save_pretrained(finished)
        if output.exists():
            output.rmdir()  # empty, see _check_output
        finished.rename(output)
