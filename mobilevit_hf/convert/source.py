"""Read the weights and `config.json` of a source checkpoint without executing code from it."""

import re
from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any, Self
from urllib.parse import urlsplit

import safetensors
import torch
from huggingface_hub import get_session
from safetensors.torch import load_file

from ..io import read_json, user_path
from ..model_sources import call_within
from ..tasks import TASKS, TaskName
from .rules import Origin

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # of a saved model, in order of preference
URL_SCHEME = "https"
MAX_REDIRECTS = 10
MAX_DOWNLOAD_BYTES = 1 << 30  # the largest MobileViT with optimizer state takes about 100 MB
MAX_DOWNLOAD_SECONDS = 300


class _Ignored:
    """Stand-in for an object whose content is not needed; nothing of its class is imported or called."""

    def __new__(cls, *args: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _IgnoredList(_Ignored, list[Any]):
    """Stand-in for a list."""


# Types in checkpoints of training scripts, next to the state dict, by their stand-ins.
STAND_INS: dict[Callable[..., Any], tuple[str, ...]] = {
    _Ignored: (
        *("argparse.Namespace", "types.SimpleNamespace", "torch.torch_version.TorchVersion", "typing.Any"),
        *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "set", "str", "tuple")),
        *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
        *("numpy.dtype", "numpy.ndarray"),
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        *(
            f"{module}.{kind}{system}Path"
            for module in ("pathlib", "pathlib._local")
            for kind in ("", "Pure")
            for system in ("Posix", "Windows")
        ),
        *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
        *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"),
        *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Float", "Integer", "String")),
    ),
    _IgnoredList: ("collections.deque",),
    OrderedDict: (
        *("addict.addict.Dict", "easydict.EasyDict", "mmengine.config.config.ConfigDict", "yacs.config.CfgNode"),
        *("lightning.fabric.utilities.data.AttributeDict", "lightning_fabric.utilities.data.AttributeDict"),
        *("lightning.pytorch.utilities.parsing.AttributeDict", "pytorch_lightning.utilities.parsing.AttributeDict"),
    ),
    (lambda *args: {}): ("collections.defaultdict",),
}


def locate_weights(source: str | Path, scratch: Path) -> Path:
    """Return the path of the weight file, downloaded to `scratch` if the source is a URL."""
    url = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", str(source))
    if url:
        if url[1].lower() != URL_SCHEME:
            raise ValueError(f"{source}: got {url[1]}://, expected {URL_SCHEME}://, a file or a directory.")
        return _download(str(source), scratch)
    path = user_path(source)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{source}: no such file or directory. Pass a checkpoint's path or https:// URL.")
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"{source}: got neither {' nor '.join(WEIGHT_FILES)}. Pass the path of the weight file.")


def read_weights(file: Path) -> Any:
    """Load a safetensors file, or a PyTorch file with `weights_only=True` and `STAND_INS` for other objects."""
    with file.open("rb") as stream:  # here, so that a missing permission is not reported as a damaged file
        try:
            if file.suffix.lower() == ".safetensors":
                return load_file(file)
            stand_ins: list[Any] = [(stand_in, name) for stand_in, names in STAND_INS.items() for name in names]
            with torch.serialization.safe_globals(stand_ins):
                return torch.load(stream, map_location="cpu", weights_only=True)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{file.name}: not a safetensors file ({error}).") from error
        except Exception as error:  # the unpickler raises nearly anything for damaged files
            code = re.search(r"GLOBAL ([\w.]+)", str(error))
            if code:
                raise ValueError(
                    f"{file.name}: got pickled Python code or objects ({code[1]}), which are never loaded. If you "
                    "trust the file, save its weights with torch.save(model.state_dict(), file) and convert that file."
                ) from error
            raise ValueError(
                f"{file.name}: not a PyTorch checkpoint, or a damaged one. Pass a state dict saved with torch.save or "
                "as safetensors."
            ) from error


def read_config(folder: Path, origin: Origin, task: TaskName) -> dict[str, Any]:
    """Return the fields of `config.json` next to the weights; empty without one of their origin.

    Fields of timm's `pretrained_cfg` are merged into the top level.
    """
    path = folder / "config.json"
    if origin == "official" or not path.is_file():
        return {}
    fields = read_json(path)
    if origin == "timm":
        pretrained = fields.get("pretrained_cfg")
        return {**fields, **(pretrained if isinstance(pretrained, dict) else {})} if "architecture" in fields else {}
    expected = TASKS[task].model_class.config_class.model_type
    if fields.get("model_type") != expected:
        raise ValueError(
            f"{path}: got model_type {fields.get('model_type')!r}, expected {expected!r}. Remove the file if it does "
            "not belong to the weights."
        )
    remove_code_pointers(fields)
    remove_code_pointers(fields.get("backbone_config"))
    return fields


def remove_code_pointers(fields: Any) -> None:
    """Remove fields that point to code, since the code is not converted."""
    if isinstance(fields, dict):
        for name in ("auto_map", "custom_pipelines"):
            fields.pop(name, None)


def _download(url: str, folder: Path) -> Path:
    """Download a file within the limits of size and time; it gets the suffix of the URL's path."""
    file = folder / f"checkpoint{PurePosixPath(urlsplit(url).path).suffix}"
    try:
        call_within(MAX_DOWNLOAD_SECONDS, lambda: _fetch(url, file))
    except Exception as error:  # also an invalid URL, whose class depends on huggingface_hub's version
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{url}: download failed ({reason}). Check the URL, or download the file and pass its path."
        ) from error
    return file


def _fetch(url: str, file: Path) -> None:
    with closing(_open_url(url)) as response, file.open("wb") as target:
        for chunk in response.iter_raw(1 << 20):
            if response.num_bytes_downloaded > MAX_DOWNLOAD_BYTES:
                raise ValueError(f"larger than {MAX_DOWNLOAD_BYTES >> 20} MiB, unlike any MobileViT checkpoint")
            target.write(chunk)


def _open_url(url: str) -> Any:
    """Return the streamed response of a GET request, following redirects to https only."""
    session = get_session()
    headers = {"User-Agent": "mobilevit-hf", "Accept-Encoding": "identity"}
    request = session.build_request("GET", url, headers=headers, timeout=30)
    for _ in range(MAX_REDIRECTS + 1):
        if request.url.scheme != URL_SCHEME:
            raise ValueError(f"redirected to {request.url}, which is not {URL_SCHEME}")
        response = session.send(request, stream=True, follow_redirects=False)
        if response.is_success:
            return response
        response.close()
        if response.next_request is None:
            raise ValueError(f"HTTP status {response.status_code} {response.reason_phrase}".rstrip())
        request = response.next_request
    raise ValueError(f"more than {MAX_REDIRECTS} redirects")
