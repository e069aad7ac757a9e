"""Under which license a model may be published: that of the weights it started from, or what its maker says."""

import contextlib
import getpass
import json
import re
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import constants, hf_hub_download, metadata_load
from huggingface_hub.errors import HfHubHTTPError

from ..model_sources import ASSETS, is_hub_reachable
from ..modeling.configuration_mobilevit import VARIANTS

RUN_FILE, CARD_FILE = "run.json", "README.md"
LICENSES_PAGE = "https://huggingface.co/docs/hub/repositories-licenses"
OTHER = "other"
APPLE_OWNER = "apple/"


@dataclass(frozen=True)
class License:
    """A license.

    Attributes:
        id: As the Hub names it, such as "apache-2.0"; "other" for one that it has no name for.
        name, link: Of one that is "other".
    """

    id: str
    name: str | None = None
    link: str | None = None


# That of the weights in Apple's repositories and of ml-cvnets.
APPLE_LICENSE = License(OTHER, "apple-sample-code-license", "https://github.com/apple/ml-cvnets/blob/main/LICENSE")


def describe_start(name: str) -> dict[str, Any]:
    """Where weights come from, without a path: what a training records of the model it starts from.

    Args:
        name: A variant for new weights, or a model as `resolve_model` takes it; it is there.

    Returns:
        `kind` ("new weights", "local", "built-in" or "hub") and `name`; where known also `base_model`, the Hub id of
        the nearest model on the Hub that it descends from, and `license`, the fields of a `License`.
    """
    if name in VARIANTS:
        return {"kind": "new weights", "name": name}
    for kind, folder in (("local", Path(name)), ("built-in", ASSETS / name)):
        if (folder / "config.json").is_file():  # else it is beside a folder of images of that name
            return {"kind": kind, "name": public_name(folder)} | _read_origin(folder)
    card = _read_card(_download_card(name))
    license = _license_of(card)
    if name.startswith(APPLE_OWNER) and license is None:
        license = APPLE_LICENSE
    return {"kind": "hub", "name": name, "base_model": name} | _to_dict(license)


def public_name(path: Path) -> str | None:
    """The last part of a path, by which others may know the folder; None where that is a user, a machine or nothing.

    Args:
        path: A folder, or a file in it.
    """
    path = path.absolute()
    folder = path.parent if path.is_file() else path
    private = {"", Path.home().name, *socket.gethostname().split(".")}
    with contextlib.suppress(KeyError, OSError, ImportError):  # a user without a name
        private.add(getpass.getuser())
    return None if folder.name in private else folder.name


def read_license(folder: Path) -> License | None:
    """That of the card in a folder, if it says one."""
    return _license_of(_read_card(folder / CARD_FILE))


def find_license(given: License | None, base_model: str | None, start: Mapping[str, Any]) -> License:
    """The license of a model.

    Args:
        given: By its maker, who knows best: now, or in the card that is there.
        base_model: The Hub id of what it was made from, given by its maker.
        start: As `describe_start` returns it; empty if nothing is known.

    Raises:
        ValueError: If nobody knows, or the one given is none.
    """
    if given:
        return _check(given)
    if start.get("license") and base_model in (None, start.get("base_model")):
        return License(**start["license"])
    if (base_model or start.get("base_model") or "").startswith(APPLE_OWNER):
        return APPLE_LICENSE
    reason = "nothing tells what its weights came from"
    if start.get("kind") == "new weights" and not base_model:
        reason = "it was trained from new weights, so the license is yours to choose"
    elif name := base_model or start.get("name"):
        reason = f"it started from {name}, whose license is not recorded"
    raise ValueError(
        f"license: none is known, {reason}. Say which: --license apache-2.0, or another of {LICENSES_PAGE}; "
        "--license unknown if you don't know it."
    )


def _check(license: License) -> License:
    """With the Hub's spelling.

    Raises:
        ValueError: If it can't be one of the Hub's, or is another one without a name.
    """
    name = license.id.strip().lower()
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name):
        raise ValueError(f"license: got {license.id!r}, expected one of {LICENSES_PAGE}, such as apache-2.0 or mit.")
    if name == OTHER and not license.name:
        raise ValueError("license: got other without a name. Say --license-name too, and --license-link.")
    return License(name, license.name, license.link)


def _read_origin(folder: Path) -> dict[str, Any]:
    """The base model and license of a folder, from its card or the record of the training that made it."""
    card = _read_card(folder / CARD_FILE)
    if card.get("license"):
        bases = _bases(card)
        return ({"base_model": bases[0]} if bases else {}) | _to_dict(_license_of(card))
    try:
        start = json.loads((folder / RUN_FILE).read_text())["start"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return {name: start[name] for name in ("base_model", "license") if start.get(name)}


def _license_of(card: Mapping[str, Any]) -> License | None:
    """What a card says, unless that says nothing, or more than is true of a child of Apple's weights."""
    name = card.get("license")
    if not isinstance(name, str) or (name == OTHER and not card.get("license_name")):
        return None
    if name != OTHER and any(base.startswith(APPLE_OWNER) for base in _bases(card)):
        return None
    return License(name, card.get("license_name"), card.get("license_link"))


def _bases(card: Mapping[str, Any]) -> list[str]:
    bases = card.get("base_model") or []
    return [bases] if isinstance(bases, str) else [base for base in bases if isinstance(base, str)]


def _to_dict(license: License | None) -> dict[str, Any]:
    return {"license": {name: value for name, value in asdict(license).items() if value}} if license else {}


def _read_card(path: Path | None) -> dict[str, Any]:
    """The front matter of a card; empty without one."""
    if path is None or not path.is_file():
        return {}
    try:
        return metadata_load(path) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _download_card(repo_id: str) -> Path | None:
    try:
        offline = constants.HF_HUB_OFFLINE or not is_hub_reachable()
        return Path(hf_hub_download(repo_id, CARD_FILE, local_files_only=offline))
    except (HfHubHTTPError, OSError, ValueError):
        return None
