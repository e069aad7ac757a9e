"""Resolve a model name to a local directory: a directory, a built-in model or a Hub repository."""

import difflib
import json
import math
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .io import quote_words, read_json
from .tasks import TRAINABLE_TASKS, Task, TaskName, find_task

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig

Result = TypeVar("Result")

ASSETS = Path(__file__).parent / "assets"
IMAGE_PROCESSOR_FILE = "preprocessor_config.json"
DEFAULT_MODEL = "apple/mobilevit-xx-small"
DEFAULT_THRESHOLD = 0.5  # score threshold of transformers' object-detection pipeline
HUB_TIMEOUT_SECONDS = 3
HUB_RECHECK_SECONDS = 60
# Limits of configurations from elsewhere, which are checked before memory is allocated for them.
MAX_LABELS = 1_000_000
MAX_SIDE = 10_000  # pixels of an image processor's output
SIZES = ("size", "crop_size")  # fields of an image processor


def builtin_models() -> list[str]:
    """Return the names of the models that come with the package."""
    return sorted(path.parent.name for path in ASSETS.glob("*/config.json"))


def builtin(name: str) -> Path:
    """Return the directory of a model that comes with the package, for `from_pretrained` and `pipeline`.

    Raises:
        ValueError: If no built-in model has this name.
    """
    if name not in builtin_models():
        raise ValueError(f"builtin: got {name!r}, expected one of {', '.join(builtin_models())}.")
    return ASSETS / name


def resolve_model(name: str, *, folder: str | None = None) -> Path:
    """Return the local directory of a model, downloaded from the Hub if necessary.

    Args:
        name: Directory, name of a built-in model or Hub id such as `"apple/mobilevit-small"`, looked up in this
            order. Without a connection to the Hub, the local cache is used.
        folder: Subfolder of the Hub repository to download as well, such as `"onnx"`, if the repository has it.

    Raises:
        ValueError: If the model does not exist or can't be downloaded. The message is one line.
    """
    path = Path(name)
    if (path / "config.json").is_file():
        return path
    if path.is_file():
        raise ValueError(
            f"{name} is a file, expected a directory. Convert it: mobilevit convert {quote_words(name)} OUT"
        )
    if name in builtin_models():  # even next to a folder of images of this name
        return ASSETS / name
    if path.is_dir():
        raise ValueError(
            f"{name}: got no config.json, expected a directory written by save_pretrained. Pass another directory."
        )
    return _from_hub(name, folder)


def read_task(name: str, folder: Path, allowed: Iterable[TaskName] = TRAINABLE_TASKS) -> Task:
    """Return the task of the checkpoint in a folder; `name` stands for it in error messages.

    Raises:
        ValueError: If the checkpoint is for a task that is not allowed or its configuration is invalid.
    """
    return find_task(read_config(folder, name, trust_remote_code=False), name, allowed)


def read_config(source: str | Path, name: str | None = None, **kwargs: Any) -> "PreTrainedConfig":
    """Return the configuration of a checkpoint in a directory or on the Hub.

    Args:
        name: Stands for the source in error messages.
        kwargs: Arguments of `AutoConfig.from_pretrained`.

    Raises:
        ValueError: If a field is invalid. The message is one line.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    name = name or str(source)
    try:
        num_labels = read_json(Path(source, "config.json")).get("num_labels", 0)  # 0 for a Hub id
        if not 0 <= num_labels <= MAX_LABELS:
            raise ValueError(f"num_labels: got {num_labels}, expected at most {MAX_LABELS}.")
        config = AutoConfig.from_pretrained(source, **kwargs)
        _check_config(config)
    except (StrictDataclassError, AttributeError, KeyError, TypeError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise
        raise ValueError(f"{name}: invalid config.json: {_reason(error)}. Fix it, or use another model.") from error
    return config


def _check_config(config: "PreTrainedConfig") -> None:
    if "/" in str(getattr(config, "_attn_implementation", None)):
        raise ValueError(
            f"_attn_implementation: got {config._attn_implementation!r}, which is code on the Hub, expected one of "
            "transformers."
        )
    names: dict[Any, Any] = config.id2label or {}
    if invalid := [names[index] for index in names if not isinstance(names[index], str)]:
        raise ValueError(f"id2label: got {invalid[0]!r}, expected a class name.")
    if config.model_type.startswith("mobilevit") and sorted(names) != list(range(max(1, len(names)))):
        raise ValueError("id2label: got other indices, expected 0, 1, ... without gaps.")


def load_image_processor(source: str | Path, **kwargs: Any) -> "BaseImageProcessor":
    """Return the image processor of a checkpoint in a directory or on the Hub.

    Args:
        kwargs: Arguments of `AutoImageProcessor.from_pretrained`.

    Raises:
        ValueError: If there is none, or a field is invalid. The message is one line.
    """
    from transformers import AutoImageProcessor

    try:
        with checkpoint_errors(source):
            processor = AutoImageProcessor.from_pretrained(source, **kwargs)
    except (LookupError, ValueError) as error:
        if str(error).startswith(f"{source}: ") or "trust_remote_code" in str(error):
            raise
        raise ValueError(
            f"{source}: invalid {IMAGE_PROCESSOR_FILE}: {_reason(error)}. Fix it, or use another model."
        ) from error
    check_image_processor(processor, source)
    return processor


def check_image_processor(processor: Any, source: str | Path) -> None:
    """Check the fields of an image processor; `source` names the checkpoint in the message.

    Raises:
        ValueError: If one is invalid, or memory for images of its size could not be allocated.
    """
    resizes = getattr(processor, "do_resize", False)
    for name, value in vars(processor).items():
        value = dict(value) if name in SIZES and value else value
        if (expected := _expected(name, value)) and (value is not None or (name == "size" and resizes)):
            raise ValueError(
                f"{source}: invalid {IMAGE_PROCESSOR_FILE}: {name}: got {value!r}, expected {expected}. "
                "Fix it, or use another model."
            )


def _reason(error: Exception) -> str:
    """Return the first sentence of an error's message."""
    return re.split(r"(?<=[\w`'\")])\.(?=\s|$)", " ".join(str(error).split()))[0]


def _expected(name: str, value: Any) -> str | None:
    """Return what is expected for a field of an image processor with an invalid value, None for a valid one."""
    from PIL import Image

    if name in SIZES:
        edges = [pixels for edge, pixels in value.items() if not edge.endswith("_pixels")] if value else [None]
        if not all(isinstance(pixels, int) and 0 < pixels <= MAX_SIDE for pixels in edges):
            return f"1 to {MAX_SIDE} pixels"
    elif name == "resample" and value not in list(Image.Resampling):
        return f"0 to {max(Image.Resampling)}"
    elif name.startswith("do_") and not isinstance(value, bool):
        return "true or false"
    elif name in ("rescale_factor", "image_mean", "image_std"):
        numbers = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            return "finite numbers"
    return None


def recommended_threshold(config: "PreTrainedConfig") -> float:
    """Return the recommended score threshold of a detector, `DEFAULT_THRESHOLD` if its configuration has none."""
    return getattr(config, "recommended_threshold", None) or DEFAULT_THRESHOLD


@contextmanager
def checkpoint_errors(source: str | Path) -> Generator[None, None, None]:
    """Raise errors of loading weights or an image processor from `source` as a one-line `ValueError`."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ValueError(
            f"{source}: model.safetensors can't be read ({error}). Download or save the model again."
        ) from error
    except OSError as error:
        if not Path(source, "config.json").is_file() or Path(source, IMAGE_PROCESSOR_FILE).is_file():
            raise
        raise ValueError(
            f"{source}: got no {IMAGE_PROCESSOR_FILE}, expected an image processor. Save one there."
        ) from error
    except ValueError:
        raise
    except Exception as error:
        if _has_only_pickled_weights(Path(source)) and "ignore_mismatched_sizes" not in str(error):
            # The unpickler raises nearly anything for damaged files.
            raise ValueError(
                f"{source}: pytorch_model.bin can't be read: it is damaged, or has code or objects, which are never "
                f"loaded. Save the model again, or convert the file: mobilevit convert {quote_words(source)} OUT"
            ) from error
        if not isinstance(error, AttributeError | TypeError | ImportError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{source}: can't be loaded, its config.json or {IMAGE_PROCESSOR_FILE} is invalid ({reason}). Fix it, or "
            "use another model."
        ) from error


def check_weights(folder: Path) -> None:
    """Check that a directory has weights and that the headers of its safetensors files match their lengths.

    Raises:
        ValueError: If it has none, or a file is damaged.
    """
    from safetensors import safe_open

    if not has_weights(folder):
        raise ValueError(f"{folder}: got no model.safetensors, expected weights. Download or save the model again.")
    with checkpoint_errors(folder):
        for path in folder.glob("model*.safetensors"):
            with safe_open(path, framework="pt"):
                pass


def _has_only_pickled_weights(folder: Path) -> bool:
    return (folder / "pytorch_model.bin").is_file() and not any(folder.glob("*.safetensors"))


def has_weights(folder: Path) -> bool:
    """Return whether a directory has PyTorch weights; otherwise it has exported models only."""
    return any(folder.glob("*.safetensors")) or (folder / "pytorch_model.bin").is_file()


def _from_hub(name: str, folder: str | None) -> Path:
    from huggingface_hub import constants, errors

    no_builtin = f"no built-in model of this name ({_list_builtin(name)})"
    offline = constants.HF_HUB_OFFLINE or not is_hub_reachable()
    try:
        return _download(name, folder, local_files_only=offline)
    except errors.HFValidationError:
        reason = f"There is no directory {name}, {no_builtin}, and it can't be a Hub id (user/name). Check the name."
    except errors.GatedRepoError:
        reason = f"{name} is gated. Request access on its page, then sign in: hf auth login"
    except errors.RepositoryNotFoundError:
        reason = (
            f"There is no directory {name}, {no_builtin} and no such repository on the Hub. "
            "If it is private, sign in: hf auth login"
        )
    except errors.LocalEntryNotFoundError:
        reason = _not_cached(name)
    except (errors.HTTPError, json.JSONDecodeError) as error:  # error status, broken connection or a proxy's page
        is_status = isinstance(error, errors.HfHubHTTPError)
        why = f"HTTP {error.response.status_code}" if is_status else str(error).rstrip(".")
        reason = f"{name} can't be downloaded from the Hub ({why}). Try again later, or pass a local directory."
    raise ValueError(reason)


def is_hub_reachable() -> bool:
    """Return whether the Hub answers within `HUB_TIMEOUT_SECONDS`; not asked again for `HUB_RECHECK_SECONDS`."""
    from huggingface_hub import constants

    return _answers(constants.ENDPOINT, int(time.monotonic() / HUB_RECHECK_SECONDS))


@lru_cache(maxsize=1)
def _answers(endpoint: str, period: int) -> bool:
    from huggingface_hub import get_session

    with suppress(Exception):  # whatever fails, the Hub can't be used
        call_within(HUB_TIMEOUT_SECONDS, lambda: get_session().head(endpoint, timeout=HUB_TIMEOUT_SECONDS))
        return True
    return False


def call_within(seconds: float, request: Callable[[], Result]) -> Result:
    """Return the result of a network request in a thread, which is left behind after this time.

    The timeout of the HTTP client excludes the name resolution and restarts with every byte.

    Raises:
        TimeoutError: If the request takes longer.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(request())
        except BaseException as error:  # raised in the calling thread
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    for error in errors:
        raise error
    if not results:
        raise TimeoutError(f"took more than {seconds:g} s")
    return results[0]


@contextmanager
def offline_if_unreachable(name: str | None) -> Generator[None, None, None]:
    """Load a model by name from the cache if the Hub can't be reached, whose client would retry for half a minute.

    Args:
        name: Directory or Hub id; None if the model is loaded already.

    Raises:
        OSError: If the Hub can't be reached and the cache lacks a file. The message is one line.
    """
    from huggingface_hub import constants

    if name is None or Path(name).is_dir() or constants.HF_HUB_OFFLINE or is_hub_reachable():
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except OSError as error:
        raise OSError(_not_cached(name)) from error
    finally:
        constants.HF_HUB_OFFLINE = False


def _list_builtin(name: str) -> str:
    """Return the built-in models as text, with the one whose name is similar to a mistyped one."""
    similar = difflib.get_close_matches(name, builtin_models(), n=1)
    return ", ".join(builtin_models()) + (f"; did you mean {similar[0]}?" if similar else "")


def _not_cached(name: str) -> str:
    return (
        f"{name} is not in the local cache and the Hub can't be reached. "
        f"Check the connection, or pass a local directory or a built-in model ({_list_builtin(name)})."
    )


def _download(name: str, subfolder: str | None, *, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    fetch = partial(snapshot_download, name, local_files_only=local_files_only)
    # * in a pattern matches / too.
    folder = Path(fetch(allow_patterns=["*.json", "*.safetensors"], ignore_patterns=["*/*"]))
    if subfolder:
        fetch(allow_patterns=[f"{subfolder}/*"])
    if not list(folder.glob("*.safetensors")):  # older repositories; loaded with weights_only=True
        fetch(allow_patterns=["pytorch_model.bin"])
    if not (folder / "config.json").is_file():
        raise ValueError(f"{name}: got no config.json, expected a transformers model. Use another repository.")
    return folder
