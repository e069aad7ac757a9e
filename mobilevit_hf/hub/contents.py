"""What of a folder is published, and what speaks against it."""

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_token
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_import_files

from ..backends.cache import RECORD, read_record, weights_hash
from ..modeling.configuration_mobilevit import MobileViTConfig
from ..modeling.configuration_mobilevit_ssdlite import MobileViTSSDLiteConfig
from ..modeling.image_processing_mobilevit_ssdlite import MobileViTSSDLiteImageProcessor
from ..modeling.modeling_mobilevit_ssdlite import MobileViTSSDLiteForObjectDetection
from ..pipelines import load_model
from .card import is_ours, render_card, render_eval_results
from .metadata import IMAGES, PUBLISHED_FILES, Given, collect_facts, find_task

CARD, CONFIG, PROCESSOR = "README.md", "config.json", "preprocessor_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
EVAL_RESULTS = ".eval_results"
# What programs for other engines consist of, by the folder they lie in.
EXPORTS = {
    "onnx": (".onnx", ".onnx_data", ".data"),
    "openvino": (".xml", ".bin"),
    "executorch": (".pte",),
    "coreml": (".mlmodel", ".bin", ".json"),
}
TEXTS = (".json", ".md", ".py", ".xml", ".yaml", ".yml")
# Classes of a detector that come with their code, by the file that points at it.
CODE = {
    CONFIG: (MobileViTSSDLiteConfig, MobileViTSSDLiteForObjectDetection),
    PROCESSOR: (MobileViTSSDLiteImageProcessor,),
}
# What transformers.js is to load in a browser, where it asks for a quantized file if it isn't told.
BROWSER_FILE, BROWSER_CONFIG = "onnx/model.onnx", {"transformers.js_config": {"dtype": "fp32"}}
PLACEHOLDER = re.compile(r"LABEL_\d+")
SECRETS = {
    "a token of the Hub": re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}\b"),
    "a token of GitHub": re.compile(r"\b(?:gh[opsu]_[A-Za-z0-9]{36}|github_pat_\w{60,})\b"),
    "a key of AWS": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a key of an API": re.compile(r"\bsk-[A-Za-z0-9_-]{32,}"),
    "a private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY"),
}


@dataclass(frozen=True)
class Contents:
    """What a repository is to hold.

    Attributes:
        files: By their paths in the repository: a file of the folder, or what there is instead.
        left_out: Names in the folder that stay here.
    """

    files: dict[str, Path | bytes]
    left_out: tuple[str, ...]

    @property
    def card(self) -> str:
        """The model card."""
        return self.read(CARD).decode(errors="replace")

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by path."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }

    def read(self, name: str) -> bytes:
        """A file's content."""
        content = self.files[name]
        return content if isinstance(content, bytes) else content.read_bytes()


def gather(folder: Path, repo_id: str, given: Given) -> Contents:
    """What is to be published of a model's folder.

    Args:
        folder: Of a model, with its image processor; nothing is written there.
        repo_id: For the card.
        given: What its maker says about it.

    Raises:
        ValueError: If it can't be published as it is; all the reasons in one line.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} is no model: it has no {CONFIG}. Give a folder that `mobilevit train` wrote.")
    files: dict[str, Path | bytes] = {name: folder / name for name in _choose(folder, given)}
    problems = [f"{name} is a link out of the folder" for name in files if _leads_out(folder, name)]
    if problems:
        raise ValueError(_refuse(folder, problems))
    problems += [*_check_model(folder, files), *_check_weights(folder)]
    if not problems:
        problems += _check_exports(folder)
        files |= _finish_configs(folder)
        try:
            files |= _make_card(folder, repo_id, given)
        except ValueError as error:
            problems.append(str(error))
    contents = Contents(dict(sorted(files.items())), _left_out(folder, files))
    problems += _check_texts(folder, contents)
    if problems:
        raise ValueError(_refuse(folder, problems))
    return contents


def _refuse(folder: Path, problems: list[str]) -> str:
    return f"{folder} can't be published: {'; '.join(problem.rstrip('.') for problem in problems)}."


def _choose(folder: Path, given: Given) -> Iterator[str]:
    """The names of the files in the folder that are published as they are."""
    beside = [name for name in PUBLISHED_FILES if given.images or name not in IMAGES]
    for name in (CONFIG, PROCESSOR, *weight_files(folder), RECORD, *beside):
        if (folder / name).is_file():
            yield name
    for export, suffixes in EXPORTS.items():
        for path in sorted((folder / export).rglob("*")):
            name = path.relative_to(folder)
            if path.suffix in suffixes and path.is_file() and not any(part.startswith(".") for part in name.parts):
                yield name.as_posix()


def weight_files(folder: Path) -> list[str]:
    """The files of the weights: one, or an index and the shards that it names."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [WEIGHTS]
    try:
        shards = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        return [INDEX]
    return [INDEX, *sorted(name for name in shards if SHARD.fullmatch(str(name)))]


def _leads_out(folder: Path, name: str) -> bool:
    return not (folder / name).resolve().is_relative_to(folder.resolve())


def _left_out(folder: Path, files: dict[str, Path | bytes]) -> tuple[str, ...]:
    tops = {name.split("/")[0] for name in files}
    return tuple(sorted(path.name for path in folder.iterdir() if path.name not in tops))


# --- what speaks against it ------------------------------------------------------------------------------------------


def _check_model(folder: Path, files: dict[str, Path | bytes]) -> Iterator[str]:
    """The configurations."""
    config = _read_json(folder / CONFIG)
    if config is None:
        yield f"{CONFIG} is not JSON"
        return
    expected = (MobileViTConfig.model_type, MobileViTSSDLiteConfig.model_type)
    if config.get("model_type") not in expected:
        yield f"it is a model of type {config.get('model_type')}, expected {' or '.join(expected)}"
        return
    if PROCESSOR not in files:
        yield f"{PROCESSOR} is missing, which says how images are prepared: save the image processor there"
    elif _read_json(folder / PROCESSOR) is None:
        yield f"{PROCESSOR} is not JSON"
    if any("For" in name for name in config.get("architectures") or ["For"]):  # it answers with names
        names = config.get("id2label")
        if not isinstance(names, dict) or not names or any(PLACEHOLDER.fullmatch(str(n)) for n in names.values()):
            yield f'the classes have no names: write them to id2label in {CONFIG}, such as {{"0": "cat", "1": "dog"}}'
        elif odd := [key for key in names if not key.isdecimal()]:
            yield f"id2label in {CONFIG}: got {odd[0]!r} as the number of a class, expected 0, 1, ..."


def _check_weights(folder: Path) -> Iterator[str]:
    """The tensors, one after the other."""
    names = [name for name in weight_files(folder) if name != INDEX]
    if missing := [name for name in names if not (folder / name).is_file()]:
        if any(path for pattern in PICKLED for path in folder.glob(pattern)):
            yield f"its weights are pickled, which nobody should have to load: mobilevit convert {folder} OUT"
        else:
            yield f"{', '.join(missing)} is missing"
        return
    if not names:
        yield f"{INDEX} names no weights"
    for name in names:
        try:
            with safe_open(folder / name, framework="pt") as tensors:
                bad = [key for key in tensors.keys() if not _is_finite(tensors.get_tensor(key))]  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            yield f"{name} is no safetensors file ({error})"
            continue
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            yield f"{bad[0]}{more} in {name} has values that are not finite numbers: the training has failed"


def _check_exports(folder: Path) -> Iterator[str]:
    """Programs that were made of other weights, as before the last training."""
    entries = [entry for entry in read_record(folder / RECORD) if (folder / str(entry.get("file"))).exists()]
    if not entries:
        return
    task = find_task(_read_json(folder / CONFIG))
    weights = weights_hash(load_model(task, str(folder), {"trust_remote_code": False})[0])
    if old := [entry["file"] for entry in entries if entry.get("weights") != weights]:
        yield f"{', '.join(old)} was made of other weights: remove it, or run mobilevit export again"


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.float().isfinite().all())


def _check_texts(folder: Path, contents: Contents) -> Iterator[str]:
    """What nobody else should read, in what everybody can."""
    token = get_token()
    homes = {str(path) for path in (folder.resolve(), folder.absolute(), Path.home()) if len(path.parts) > 1}
    for name in contents.files:
        if not name.endswith(TEXTS):
            continue
        text = contents.read(name).decode(errors="replace")
        if token and token in text:
            yield f"{name} holds your token of the Hub"
        for kind, pattern in SECRETS.items():
            if pattern.search(text) and not (token and token in text):
                yield f"{name} holds what looks like {kind}"
        if any(f"{home}/" in text or f'{home}"' in text for home in homes):
            yield f"{name} holds a path of this machine"


# --- what is made for it ---------------------------------------------------------------------------------------------


def _finish_configs(folder: Path) -> dict[str, Path | bytes]:
    """The code of a detector, and configurations that point at it; those of any other model point at none.

    That of a model with a file for browsers names it.
    """
    found = {name: _read_json(folder / name) for name in CODE}
    is_detector = found[CONFIG]["model_type"] == MobileViTSSDLiteConfig.model_type
    files: dict[str, Path | bytes] = {}
    for name, values in found.items():
        wanted = {key: value for key, value in values.items() if key not in ("auto_map", "_name_or_path")}
        if is_detector:
            kinds = {kind: Path(inspect.getfile(kind)).stem for kind in CODE[name]}
            wanted["auto_map"] = {kind._auto_class: f"{module}.{kind.__name__}" for kind, module in kinds.items()}
        elif name == CONFIG and (folder / BROWSER_FILE).is_file():
            wanted = BROWSER_CONFIG | wanted
        if wanted != values:
            files[name] = (json.dumps(wanted, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    if is_detector:
        sources = {Path(inspect.getfile(kind)) for classes in CODE.values() for kind in classes}
        sources |= {Path(path) for source in sources for path in get_relative_import_files(source)}
        # Code that was saved with the weights fits them best; if that isn't all there, this package's.
        own = {source.name: folder / source.name for source in sources}
        whole = all(path.is_file() and not _leads_out(folder, name) for name, path in own.items())
        files |= own if whole else {source.name: source for source in sources}
    return files


def _make_card(folder: Path, repo_id: str, given: Given) -> dict[str, Path | bytes]:
    """The card, and results as files; a card written by hand is taken as it is.

    Raises:
        ValueError: If a card can't be made.
    """
    path = folder / CARD
    if path.is_file() and not is_ours(path.read_text(errors="replace")):
        if _leads_out(folder, CARD):
            raise ValueError(f"{CARD} is a link out of the folder")
        return {CARD: path}
    facts = collect_facts(folder, given)
    results = {f"{EVAL_RESULTS}/{name}": text.encode() for name, text in render_eval_results(facts).items()}
    return {CARD: render_card(facts, repo_id).encode(), **results}


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
