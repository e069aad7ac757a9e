"""Contents of a repository: files of a model folder, generated files, and checks before publishing."""

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import get_token
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_import_files

from ..backends.cache import weights_hash
from ..backends.files import check_exported
from ..backends.formats import FORMATS
from ..backends.pytorch import load_model
from ..backends.transformers_js import browser_configs, default_dtype
from ..io import home_folder, quote_words, read_json
from ..model_sources import load_image_processor, read_config
from ..modeling.configuration_mobilevit import MobileViTConfig
from ..modeling.configuration_mobilevit_ssdlite import MobileViTSSDLiteConfig
from ..modeling.image_processing_mobilevit_ssdlite import MobileViTSSDLiteImageProcessor
from ..modeling.modeling_mobilevit_ssdlite import MobileViTSSDLiteForObjectDetection
from ..records import EXPORT_FILE, read_export_records
from ..tasks import find_task
from .card import is_generated, render_card, render_eval_results
from .metadata import IMAGES, PUBLISHED_FILES, CardOptions, collect_metadata, find_mobilevit_task

CARD, CONFIG, PROCESSOR = "README.md", "config.json", "preprocessor_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
EVAL_RESULTS = ".eval_results"
# Suffixes of the files of exported models, by folder.
EXPORTS = {
    "onnx": (".onnx", ".onnx_data", ".data"),
    "openvino": (".xml", ".bin"),
    "executorch": (".pte",),
    "litert": (".tflite",),
    "coreml": (".mlmodel", ".bin", ".json"),
}
TEXTS = (".json", ".md", ".py", ".xml", ".yaml", ".yml")
# Classes of the detector that are published as code, by the configuration that refers to them.
CODE = {
    CONFIG: (MobileViTSSDLiteConfig, MobileViTSSDLiteForObjectDetection),
    PROCESSOR: (MobileViTSSDLiteImageProcessor,),
}
PLACEHOLDER = re.compile(r"LABEL_\d+")
SECRETS = {
    "a Hub token": re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}\b"),
    "a GitHub token": re.compile(r"\b(?:gh[opsu]_[A-Za-z0-9]{36}|github_pat_\w{60,})\b"),
    "an AWS key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "an API key": re.compile(r"\bsk-[A-Za-z0-9_-]{32,}"),
    "a private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY"),
}


@dataclass(frozen=True)
class Contents:
    """Contents of a repository.

    Attributes:
        files: Local file or generated content, by path in the repository.
        left_out: Names in the folder that are not published.
    """

    files: dict[str, Path | bytes]
    left_out: tuple[str, ...]

    @property
    def card(self) -> str:
        """Model card."""
        return self.read(CARD).decode(errors="replace")

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes in bytes, by path."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        content = self.files[name]
        return content if isinstance(content, bytes) else content.read_bytes()


def gather(folder: Path, repo_id: str, card_options: CardOptions) -> Contents:
    """Return the contents to publish from a model folder.

    Args:
        folder: Model with its image processor; not modified.
        repo_id: Repository id for the card.
        card_options: Model card metadata from the author.

    Raises:
        ValueError: If it can't be published; lists all reasons in one line.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "a folder that does not exist"
        raise ValueError(f"{folder}: got {found}, expected a model. Pass an output folder of `mobilevit train`.")
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: got no {CONFIG}, expected a model. Pass an output folder of `mobilevit train`.")
    files: dict[str, Path | bytes] = {name: folder / name for name in _select_files(folder, card_options)}
    _raise_problems(folder, [f"{name} is a link out of the folder" for name in files if _leads_out(folder, name)])
    problems = [*_check_configs(folder, files), *_check_weights(folder)]
    if not problems:
        problems += _check_exports(folder)
        files |= _finish_configs(folder)
        try:
            files |= _make_card(folder, repo_id, card_options)
        except ValueError as error:
            problems.append(str(error))
    published = {name.split("/")[0] for name in files}
    left_out = sorted(path.name for path in folder.iterdir() if path.name not in published)
    contents = Contents(dict(sorted(files.items())), tuple(left_out))
    _raise_problems(folder, [*problems, *_check_texts(folder, contents)])
    return contents


def _raise_problems(folder: Path, problems: list[str]) -> None:
    if problems:
        reasons = "; ".join(problem.rstrip(".") for problem in problems)
        raise ValueError(f"{folder} can't be published: {reasons}.")


def _select_files(folder: Path, card_options: CardOptions) -> Iterator[str]:
    """Yield the names of the files that are published unchanged."""
    extra = [name for name in PUBLISHED_FILES if card_options.images or name not in IMAGES]
    for name in (CONFIG, PROCESSOR, *weight_files(folder), EXPORT_FILE, *extra):
        if (folder / name).is_file():
            yield name
    for export, suffixes in EXPORTS.items():
        for path in sorted((folder / export).rglob("*")):
            name = path.relative_to(folder)
            if path.suffix in suffixes and path.is_file() and not any(part.startswith(".") for part in name.parts):
                yield name.as_posix()


def weight_files(folder: Path) -> list[str]:
    """Return the names of the weight files: a single file, or an index with its shards."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [WEIGHTS]
    try:
        shards = set(read_json(folder / INDEX)["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        return [INDEX]
    return [INDEX, *sorted(name for name in shards if SHARD.fullmatch(str(name)))]


def _leads_out(folder: Path, name: str) -> bool:
    return not (folder / name).resolve().is_relative_to(folder.resolve())


# --- checks ----------------------------------------------------------------------------------------------------------


def _check_configs(folder: Path, files: dict[str, Path | bytes]) -> Iterator[str]:
    """Yield the problems of the configurations."""
    try:
        config, _ = read_json(folder / CONFIG), read_json(folder / PROCESSOR)
    except ValueError as error:
        yield str(error)
        return
    expected = (MobileViTConfig.model_type, MobileViTSSDLiteConfig.model_type)
    if config.get("model_type") not in expected:
        yield f"model_type: got {config.get('model_type')}, expected {' or '.join(expected)}"
        return
    if PROCESSOR not in files:
        yield f"{PROCESSOR} is missing: save the image processor there"
    if any("For" in name for name in config.get("architectures") or ["For"]):  # a backbone has no classes
        names = config.get("id2label")
        if not isinstance(names, dict) or not names or any(PLACEHOLDER.fullmatch(str(n)) for n in names.values()):
            yield f'the classes have no names: set id2label in {CONFIG}, such as {{"0": "cat", "1": "dog"}}'
        elif invalid := [key for key in names if not key.isdecimal()]:
            yield f"id2label in {CONFIG}: got {invalid[0]!r} as a class index, expected 0, 1, ..."
            return
    try:
        read_config(folder, trust_remote_code=False)
        if PROCESSOR in files:
            load_image_processor(folder, trust_remote_code=False)
    except ValueError as error:
        yield str(error).removeprefix(f"{folder}: ")


def _check_weights(folder: Path) -> Iterator[str]:
    """Yield the problems of the weights, reading one tensor at a time."""
    names = [name for name in weight_files(folder) if name != INDEX]
    if missing := [name for name in names if not (folder / name).is_file()]:
        if any(path.suffix in PICKLED for path in folder.iterdir()):
            yield f"its weights are pickled, which is unsafe to load: mobilevit convert {quote_words(folder)} OUT"
        else:
            yield f"{', '.join(missing)} is missing"
        return
    if not names:
        yield f"{INDEX} lists no weights"
    for name in names:
        try:
            with safe_open(folder / name, framework="pt") as tensors:
                bad = [key for key in tensors.keys() if not tensors.get_tensor(key).float().isfinite().all()]  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            yield f"{name} is not a valid safetensors file ({error})"
            continue
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            yield f"{bad[0]}{more} in {name} has NaN or infinite values: the training diverged"


def _check_exports(folder: Path) -> Iterator[str]:
    """Yield exported models of other weights, such as those before the last training, and files that were replaced."""
    known = {path for format in FORMATS.values() for path in format.paths if (folder / path).exists()}
    records = [record for record in read_export_records(folder / EXPORT_FILE) if record.file in known]
    if not records:
        return
    task = find_mobilevit_task(read_json(folder / CONFIG)).name
    weights = weights_hash(load_model(task, str(folder), {"trust_remote_code": False})[0])
    if outdated := [record.file for record in records if record.weights != weights]:
        yield f"{', '.join(outdated)} was exported from other weights: remove it, or run mobilevit export again"
        return
    for file in sorted({record.file for record in records}):
        try:
            check_exported(folder / file, [record for record in records if record.file == file])
        except ValueError as error:
            yield str(error).removeprefix(f"{folder}/")


def _check_texts(folder: Path, contents: Contents) -> Iterator[str]:
    """Yield secrets and local paths in text files."""
    token = get_token()
    folders = (folder.resolve(), folder.absolute(), home_folder())
    homes = {str(path) for path in folders if path and len(path.parts) > 1}
    for name in contents.files:
        if not name.endswith(TEXTS):
            continue
        text = contents.read(name).decode(errors="replace")
        if token and token in text:
            yield f"{name} contains your Hub token"
        for kind, pattern in SECRETS.items():
            if pattern.search(text) and not (token and token in text):
                yield f"{name} contains what looks like {kind}"
        if any(f"{home}/" in text or f'{home}"' in text for home in homes):
            yield f"{name} contains a local path"


# --- generated files -------------------------------------------------------------------------------------------------


def _finish_configs(folder: Path) -> dict[str, Path | bytes]:
    """Return the configurations that differ when published, and the code of a detector.

    The configurations of a detector refer to its code, others to none. A model with an ONNX file for transformers.js
    has its default dtype in the configuration, or configurations of its own next to the file.
    """
    configs = {name: read_json(folder / name) for name in CODE}
    is_detector = configs[CONFIG]["model_type"] == MobileViTSSDLiteConfig.model_type
    files: dict[str, Path | bytes] = {}
    for name, values in configs.items():
        published = {key: value for key, value in values.items() if key not in ("auto_map", "_name_or_path")}
        if is_detector:
            modules = {kind: Path(inspect.getfile(kind)).stem for kind in CODE[name]}
            published["auto_map"] = {kind._auto_class: f"{module}.{kind.__name__}" for kind, module in modules.items()}
        elif name == CONFIG and (dtype := default_dtype(folder, "image-classification", "tensors")):
            published = {"transformers.js_config": {"dtype": dtype}} | published
        if published != values:
            files[name] = (json.dumps(published, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    names, task = configs[CONFIG].get("id2label", {}), find_task(configs[CONFIG], str(folder)).name
    labels, processor = [names[index] for index in sorted(names, key=int)], load_image_processor(folder)
    browser = browser_configs(folder, task, labels, processor)
    files |= {name: text.encode() for name, text in browser.items()}
    return files | _detector_code(folder) if is_detector else files


def _detector_code(folder: Path) -> dict[str, Path | bytes]:
    """Return the source files of the detector: saved with the weights or, if incomplete, of this package."""
    sources = {Path(inspect.getfile(kind)) for classes in CODE.values() for kind in classes}
    sources |= {Path(path) for source in sources for path in get_relative_import_files(source)}
    saved = {source.name: folder / source.name for source in sources}
    complete = all(path.is_file() and not _leads_out(folder, name) for name, path in saved.items())
    return {**saved} if complete else {source.name: source for source in sources}


def _make_card(folder: Path, repo_id: str, card_options: CardOptions) -> dict[str, Path | bytes]:
    """Return the card and the evaluation results; a handwritten card is returned unchanged."""
    path = folder / CARD
    if path.is_file() and not is_generated(path.read_text(encoding="utf-8", errors="replace")):
        if _leads_out(folder, CARD):
            raise ValueError(f"{CARD} is a link out of the folder")
        return {CARD: path}
    metadata = collect_metadata(folder, card_options)
    results = {f"{EVAL_RESULTS}/{name}": text.encode() for name, text in render_eval_results(metadata).items()}
    return {CARD: render_card(metadata, repo_id).encode(), **results}
