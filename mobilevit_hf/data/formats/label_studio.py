"""Label Studio's export "Brush labels to PNG": a binary mask for each label of a task."""

import json
import posixpath
import re
from collections import defaultdict
from typing import Any

from ..masks import Layers, Mask
from ..sequences import Samples
from ..types import Dataset
from .folder import DataFolder
from .lookup import FileIndex, Reference, match_files
from .painted import BACKGROUND

TASKS = ("image-segmentation",)
MASK_NAME = re.compile(
    r"task-(?P<task>\d+)-annotation-(?P<annotation>\d+)-by-.*?-tag-(?P<label>.+)-(?P<number>\d+)\.png"
)
UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # which Label Studio adds to the names of uploaded files
IMAGE_KEYS = ("image", "img", "image_url", "url")
MAX_BYTES = 512 * 2**20


def recognizes(folder: DataFolder) -> bool:
    """Return whether there is a mask that is named after its task and label."""
    return any(MASK_NAME.fullmatch(posixpath.basename(name)) for name in _png_files(folder))


def read(folder: DataFolder) -> Dataset:
    """Read masks by task, label and number, such as `task-7-annotation-9-by-1-tag-car-0.png`.

    The image of a task is the one that the JSON export of the project names, or else an image named `7` or `task-7`.
    Of several annotations of a task, the last one is used. Pixels without a label are the class background.

    Raises:
        ValueError: If there are no such masks.
    """
    tasks: dict[int, dict[int, list[tuple[str, int, str]]]] = defaultdict(lambda: defaultdict(list))
    for name in _png_files(folder):
        if match := MASK_NAME.fullmatch(posixpath.basename(name)):
            entry = (match["label"], int(match["number"]), name)
            tasks[int(match["task"])][int(match["annotation"])].append(entry)
    if not tasks:
        raise ValueError(f"{folder.root}: got no masks such as task-7-annotation-9-by-1-tag-car-0.png.")
    if several := sum(len(annotations) > 1 for annotations in tasks.values()):
        folder.notes.append(f"{several} tasks have several annotations: the last one is used.")
    masks = {task: sorted(tasks[task][max(tasks[task])], key=lambda entry: entry[1]) for task in sorted(tasks)}
    found = sorted({label for entries in masks.values() for label, *_ in entries} - {BACKGROUND})
    classes = (BACKGROUND, *found)
    folder.notes.append(f"Pixels without a label are the class {BACKGROUND}.")
    labels = {name: label for label, name in enumerate(classes)}
    images = _find_images(folder, list(masks))
    names, targets = [], []
    for task, entries in masks.items():
        if (image := images[task]) is None:
            folder.report(entries[0][2], "missing image", f"no image of task {task}; add the JSON export next to it")
            continue
        names.append(image)
        targets.append(Mask(Layers([(labels[label], folder.path(name)) for label, _, name in entries])))
    samples = Samples(names, [folder.path(name) for name in names], targets)
    return Dataset("image-segmentation", classes, {"train": samples}, "label_studio")


def _png_files(folder: DataFolder) -> list[str]:
    return folder.files_by_suffix().get(".png", [])


def _find_images(folder: DataFolder, tasks: list[int]) -> dict[int, str | None]:
    """Return the image of each task."""
    written = _read_tasks(folder)
    index = FileIndex.of_images(folder)
    references = []
    for task in tasks:
        path = written.get(task, "")
        base = posixpath.basename(path.replace("\\", "/").partition("?")[0])
        names = [base, UPLOAD_PREFIX.sub("", base)] if base else [str(task), f"task-{task}"]
        references.append(Reference([path or names[0], *names], names))
    return {task: name for task, (name, _) in zip(tasks, match_files(index, references), strict=True)}


def _read_tasks(folder: DataFolder) -> dict[int, str]:
    """Return the path of the image of each task in JSON exports, also minimal ones."""
    paths: dict[int, str] = {}
    for name in folder.files_by_suffix().get(".json", ()):
        file = folder.root / name
        try:
            content: Any = json.loads(file.read_bytes()) if file.stat().st_size <= MAX_BYTES else []
        except (OSError, ValueError, RecursionError):
            continue
        for entry in content if isinstance(content, list) else []:
            if isinstance(entry, dict) and isinstance(entry.get("id"), int):
                data = entry["data"] if isinstance(entry.get("data"), dict) else entry
                image = next((data[key] for key in IMAGE_KEYS if isinstance(data.get(key), str)), None)
                if image:
                    paths[entry["id"]] = image
    return paths
