"""Resolve a model name to a local directory: a directory, a built-in model or a Hub repository."""

import json
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .tasks import TRAINABLE_TASKS, Task, TaskName, find_task

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ASSETS = Path(__file__).parent / "assets"
IMAGE_PROCESSOR_FILE = "preprocessor_config.json"
DEFAULT_MODEL = "apple/mobilevit-xx-small"
DEFAULT_THRESHOLD = 0.5  # score threshold of transformers' object-detection pipeline
HUB_TIMEOUT_SECONDS = 10


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
        raise ValueError(f"{name} is a file, expected a directory. Convert it: mobilevit convert {name} OUT")
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
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (StrictDataclassError, AttributeError, TypeError) as error:  # a field of the wrong type
        raise ValueError(f"{name}: invalid config.json: {error} Fix it, or use another model.") from error
    return find_task(config, name, allowed)


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


def has_weights(folder: Path) -> bool:
    """Return whether a directory has PyTorch weights; otherwise it has exported models only."""
    return any(folder.glob("*.safetensors")) or (folder / "pytorch_model.bin").is_file()


def _from_hub(name: str, folder: str | None) -> Path:
    from huggingface_hub import constants, errors

    no_builtin = f"no built-in model of this name ({', '.join(builtin_models())})"
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
        reason = (
            f"{name} is not in the local cache and the Hub can't be reached. "
            f"Check the connection, or pass a local directory or a built-in model ({', '.join(builtin_models())})."
        )
    except (errors.HTTPError, json.JSONDecodeError) as error:  # error status, broken connection or a proxy's page
        is_status = isinstance(error, errors.HfHubHTTPError)
        why = f"HTTP {error.response.status_code}" if is_status else str(error).rstrip(".")
        reason = f"{name} can't be downloaded from the Hub ({why}). Try again later, or pass a local directory."
    raise ValueError(reason)


def is_hub_reachable() -> bool:
    """Return whether the Hub is reachable. The client's own retries would take half a minute."""
    from huggingface_hub import constants, errors, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS)
    except (errors.HTTPError, OSError):
        return False
    return True


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
