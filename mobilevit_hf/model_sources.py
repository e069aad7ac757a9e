"""Resolve a model name to a local directory: a directory, a built-in model, or a repository on the Hub."""

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .tasks import TRAINABLE_TASKS, Task, TaskName, find_task

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ASSETS = Path(__file__).parent / "assets"
DEFAULT_MODEL = "apple/mobilevit-xx-small"
HUB_TIMEOUT_SECONDS = 10

# Score threshold of transformers' pipeline, for a detector that recommends none.
DEFAULT_THRESHOLD = 0.5


def builtin_models() -> list[str]:
    """The names of the checkpoints that come with the package."""
    return sorted(path.parent.name for path in ASSETS.glob("*/config.json"))


def builtin(name: str) -> Path:
    """The directory of a checkpoint that comes with the package, for `from_pretrained` and `pipeline`.

    Raises:
        ValueError: If there is none of this name.
    """
    if name not in builtin_models():
        raise ValueError(f"builtin: got {name!r}, expected one of {', '.join(builtin_models())}.")
    return ASSETS / name


def resolve_model(name: str, *, folder: str | None = None) -> Path:
    """The local directory of a checkpoint, downloaded if need be.

    Args:
        name: A directory, the name of a built-in model, or a Hub id such as `"apple/mobilevit-small"`; looked up in
            this order. Without a connection to the Hub, what was downloaded before is used.
        folder: One in a repository to download too, such as `"onnx"`, if it is there.

    Raises:
        ValueError: If there is no such checkpoint or it can't be fetched; one line that says what to do.
    """
    path = Path(name)
    if (path / "config.json").is_file():
        return path
    if path.is_file():
        raise ValueError(f"{name} is a file, expected a directory. Turn it into one: mobilevit convert {name} OUT")
    if name in builtin_models():  # there may be a folder of images of this name
        return ASSETS / name
    if path.is_dir():
        raise ValueError(f"{name} holds no config.json. Pass a directory that save_pretrained wrote.")
    return _from_hub(name, folder)


def read_task(name: str, folder: Path, allowed: Iterable[TaskName] = TRAINABLE_TASKS) -> Task:
    """Return the task of the checkpoint in a folder.

    Args:
        name: Its name in errors.
        folder: Directory with its `config.json`.
        allowed: Tasks that the caller supports.

    Raises:
        ValueError: If the checkpoint is for another task, or its configuration is invalid.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (StrictDataclassError, AttributeError, TypeError) as error:  # a field of another type
        raise ValueError(f"{name}: invalid config.json: {error} Fix it, or pass another model.") from error
    return find_task(config, name, allowed)


def recommended_threshold(config: "PreTrainedConfig") -> float:
    """The score above which a detector's answers are best taken for objects."""
    return getattr(config, "recommended_threshold", None) or DEFAULT_THRESHOLD


def has_weights(folder: Path) -> bool:
    """Whether a checkpoint's directory holds more than programs for engines."""
    return any(folder.glob("*.safetensors")) or (folder / "pytorch_model.bin").is_file()


def _from_hub(name: str, folder: str | None) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    no_builtin = f"no built-in model of this name ({', '.join(builtin_models())})"
    offline = constants.HF_HUB_OFFLINE or not is_hub_reachable()
    try:
        return _download(name, folder, local_files_only=offline)
    except HFValidationError:
        reason = f"There is no directory {name}, {no_builtin}, and it can't be a Hub id (user/name)."
    except GatedRepoError:
        reason = f"{name} is gated. Ask for access on its page, then sign in: hf auth login"
    except RepositoryNotFoundError:
        reason = (
            f"There is no directory {name}, {no_builtin}, and none on the Hub. "
            "If it is private, sign in: hf auth login"
        )
    except LocalEntryNotFoundError:
        reason = (
            f"{name} is not on this machine and the Hub can't be reached. "
            f"Check the connection, or pass a local directory or a built-in model ({', '.join(builtin_models())})."
        )
    except (HTTPError, json.JSONDecodeError) as error:  # it refuses, the connection breaks, or something else answers
        why = f"HTTP {error.response.status_code}" if isinstance(error, HfHubHTTPError) else str(error).rstrip(".")
        reason = f"The Hub could not deliver {name} ({why}). Try again later, or pass a local directory."
    raise ValueError(reason)


def is_hub_reachable() -> bool:
    """Return whether the Hub answers at all; the client's own retries would take half a minute."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HTTPError

    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS)
    except (HTTPError, OSError):
        return False
    return True


def _download(name: str, beside: str | None, *, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors"]
    fetch = partial(snapshot_download, name, local_files_only=local_files_only)
    folder = Path(fetch(allow_patterns=patterns, ignore_patterns=["*/*"]))  # a pattern's * also stands for folders
    if beside:
        fetch(allow_patterns=[f"{beside}/*"])
    if not list(folder.glob("*.safetensors")):  # older repositories; loaded with weights_only=True
        fetch(allow_patterns=["pytorch_model.bin"])
    if not (folder / "config.json").is_file():
        raise ValueError(f"{name} holds no config.json: it is not a transformers model.")
    return folder
