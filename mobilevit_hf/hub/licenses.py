"""License of a model: given by its author, or inherited from the initial checkpoint."""

import contextlib
import difflib
import getpass
import re
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import constants, hf_hub_download, metadata_load
from huggingface_hub.errors import HfHubHTTPError

from ..io import home_folder
from ..model_sources import ASSETS, is_hub_reachable
from ..modeling.variants_mobilevit import VARIANTS
from ..records import TRAINING_FILE, InitialCheckpoint, TrainingRecord, read_record

CARD_FILE = "README.md"
LICENSES_PAGE = "https://huggingface.co/docs/hub/repositories-licenses"
OTHER = "other"
# Ids of `LICENSES_PAGE`.
LICENSE_IDS = (  # noqa: SIM905
    "afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 "
    "bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 "
    "cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 "
    "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 "
    "cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 "
    "etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 h-research "
    "intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit "
    "mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl "
    "zlib"
).split()
APPLE_OWNER = "apple/"


@dataclass(frozen=True)
class License:
    """A license.

    Attributes:
        id: Identifier on the Hub, such as "apache-2.0"; "other" for a license without one.
        name, link: Name and URL of an "other" license.
    """

    id: str
    name: str | None = None
    link: str | None = None


# License of the weights in Apple's repositories and of ml-cvnets.
APPLE_LICENSE = License(OTHER, "apple-sample-code-license", "https://github.com/apple/ml-cvnets/blob/main/LICENSE")


def describe_initial_checkpoint(name: str) -> InitialCheckpoint:
    """Return the origin and license of an initial checkpoint.

    Args:
        name: Variant for training from scratch, or an existing model, as for `resolve_model`.
    """
    if name in VARIANTS:
        return InitialCheckpoint(kind="scratch", name=name)
    # A folder without config.json holds images and only shares the name of a built-in model.
    if (Path(name) / "config.json").is_file():
        return InitialCheckpoint(kind="local", name=public_name(Path(name)), **_read_origin(Path(name)))
    if (ASSETS / name / "config.json").is_file():
        return InitialCheckpoint(kind="built-in", name=name, **_read_origin(ASSETS / name))
    license = _license_of(_read_hub_card(name)) or (APPLE_LICENSE if name.startswith(APPLE_OWNER) else None)
    return InitialCheckpoint(kind="hub", name=name, base_model=name, license=_to_dict(license))


def public_name(path: Path) -> str | None:
    """Return the name of a folder, or of the folder of a file; None if it is the name of a user or machine."""
    folder = path.absolute().parent if path.is_file() else path.absolute()
    home = home_folder()
    private = {"", home.name if home else "", *socket.gethostname().split(".")}
    with contextlib.suppress(KeyError, OSError, ImportError):  # a user id without a name
        private.add(getpass.getuser())
    return None if folder.name in private else folder.name


def read_license(folder: Path) -> License | None:
    """Return the license in the model card of a folder, None if it has none."""
    return _license_of(_read_card(folder / CARD_FILE))


def find_license(license: License | None, base_model: str | None, initial: InitialCheckpoint | None) -> License:
    """Return the license of a model.

    Args:
        license: License given by the author, now or in the existing card; takes precedence.
        base_model: Hub id of the base model given by the author.
        initial: Initial checkpoint, None if not recorded.

    Raises:
        ValueError: If the license is unknown or invalid.
    """
    if license:
        return _validate(license)
    recorded_base = initial.base_model if initial else None
    if initial and initial.license and base_model in (None, recorded_base):
        return License(**initial.license)  # ty: ignore[invalid-argument-type] (always has an id)
    if (base_model or recorded_base or "").startswith(APPLE_OWNER):
        return APPLE_LICENSE
    reason = "the model's initial checkpoint is not recorded"
    if initial and initial.kind == "scratch" and not base_model:
        reason = "the model was trained from scratch"
    elif name := base_model or (initial and initial.name):
        reason = f"the model was fine-tuned from {name}, whose license is not recorded"
    raise ValueError(
        f"license: not set, and {reason}. Pass --license apache-2.0 (ids: {LICENSES_PAGE}), or --license unknown."
    )


def check_listed(license_id: str | None) -> str | None:
    """Return a warning if the Hub doesn't list a license id, None otherwise."""
    name = (license_id or "").strip().lower()
    if not name or name in LICENSE_IDS:
        return None
    suggestion = f" Did you mean {similar}?" if (similar := _nearest(name)) else ""
    return f"License {name} is not listed by the Hub, which may reject the card.{suggestion} Ids: {LICENSES_PAGE}"


def _nearest(name: str) -> str | None:
    """Return the license id that is most similar to a name such as "MIT License" or "GPLv3", None if none is."""
    ids = {_normalize(id): id for id in LICENSE_IDS}
    return next((ids[key] for key in difflib.get_close_matches(_normalize(name), ids, n=1)), None)


def _normalize(name: str) -> str:
    """Return a name without the parts that are written differently: GPL-3.0, GPLv3, GPL version 3."""
    return re.sub(r"licen[cs]e|version|v(?=\d)|\.0$|[^a-z0-9.]", "", name.lower())


def _validate(license: License) -> License:
    """Return a license with its id in the Hub's spelling."""
    name = license.id.strip().lower()
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name):
        raise ValueError(
            f"license: got {license.id!r}, expected an id such as {_nearest(name) or 'apache-2.0'}. Pass one (ids: "
            f"{LICENSES_PAGE})."
        )
    if name == OTHER and not license.name:
        raise ValueError("license: got other, expected a name with it. Pass --license-name and --license-link.")
    return License(name, license.name, license.link)


def _read_origin(folder: Path) -> dict[str, Any]:
    """Return the base model and license of a local model, from its card or its training record."""
    card = _read_card(folder / CARD_FILE)
    if card.get("license"):
        return {"base_model": next(iter(_base_models(card)), None), "license": _to_dict(_license_of(card))}
    try:
        record = read_record(folder / TRAINING_FILE, TrainingRecord)
    except ValueError:
        return {}
    initial = record.initial_checkpoint if record else None
    return {"base_model": initial.base_model, "license": initial.license} if initial else {}


def _license_of(card: Mapping[str, Any]) -> License | None:
    """Return the license in the metadata of a card.

    None if there is none, or if it claims another license than Apple's for weights derived from Apple's.
    """
    name = card.get("license")
    if not isinstance(name, str) or (name == OTHER and not card.get("license_name")):
        return None
    if name != OTHER and any(base.startswith(APPLE_OWNER) for base in _base_models(card)):
        return None
    return License(name, card.get("license_name"), card.get("license_link"))


def _base_models(card: Mapping[str, Any]) -> list[str]:
    bases = card.get("base_model") or []
    return [bases] if isinstance(bases, str) else [base for base in bases if isinstance(base, str)]


def _to_dict(license: License | None) -> dict[str, str | None] | None:
    return {name: value for name, value in asdict(license).items() if value} if license else None


def _read_card(path: Path) -> dict[str, Any]:
    """Return the metadata of a card, empty if it is missing, invalid or has none."""
    try:
        return metadata_load(path) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _read_hub_card(repo_id: str) -> dict[str, Any]:
    try:
        offline = constants.HF_HUB_OFFLINE or not is_hub_reachable()
        return _read_card(Path(hf_hub_download(repo_id, CARD_FILE, local_files_only=offline)))
    except (HfHubHTTPError, OSError, ValueError):
        return {}
