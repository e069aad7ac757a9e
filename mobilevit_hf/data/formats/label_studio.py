"""Label Studio's exports of segmentation: a binary mask per label of a task, or JSON with brushes and polygons."""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from ..images import DECODER_ERRORS
from ..masks import Layers, Mask, Shapes
from ..sequences import Samples
from ..types import Dataset
from .folder import DataFolder, read_size
from .label_studio_json import find_annotations, find_exports, find_image, parse_regions, read_tasks
from .lookup import UPLOAD_PREFIX, FileIndex, Reference, match_files
from .painted import BACKGROUND

TASKS = ("image-segmentation",)
MASK_NAME = re.compile(
    r"task-(?P<task>\d+)-annotation-(?P<annotation>\d+)-by-.*?-tag-(?P<label>.+)-(?P<number>\d+)\.png"
)
SEVERAL = "{} tasks have several annotations: the last one is used."


def recognizes(folder: DataFolder) -> bool:
    """Return whether there is a mask that is named after its task and label, or JSON with brushes or polygons."""
    return bool(_find_masks(folder) or find_exports(folder))


def read(folder: DataFolder) -> Dataset:
    """Read masks by task, label and number, or else the brush strokes and polygons of JSON and JSON-MIN.

    Masks have names such as `task-7-annotation-9-by-1-tag-car-0.png`. Their image is the one that the JSON export of
    the project names, or else an image named `7` or `task-7`. Of several annotations of a task, the last one is used.
    Later regions cover earlier ones. Pixels without a label are the class background.

    Raises:
        ValueError: If there are neither.
    """
    masks = _find_masks(folder)
    if masks:
        names, targets = _read_masks(folder, masks)
    elif exports := find_exports(folder):
        names, targets = _read_regions(folder, exports)
    else:
        raise ValueError(
            f"{folder.root}: got no masks such as task-7-annotation-9-by-1-tag-car-0.png, and no JSON with brushes or "
            "polygons."
        )
    found = sorted({label for parts, _ in targets for label, _ in parts} - {BACKGROUND})
    classes = (BACKGROUND, *found)
    folder.notes.append(f"Pixels without a label are the class {BACKGROUND}.")
    labels = {name: label for label, name in enumerate(classes)}
    masks_of_images = [
        Mask(Shapes(size, layers) if size else Layers(layers))
        for parts, size in targets
        for layers in [[(labels[name], source) for name, source in parts]]
    ]
    samples = Samples(names, [folder.path(name) for name in names], masks_of_images)
    return Dataset("image-segmentation", classes, {"train": samples}, "label_studio")


# Label and source of each layer of an image; (width, height) if the sources are shapes.
_Target = tuple[list[tuple[str, Any]], tuple[int, int] | None]


def _find_masks(folder: DataFolder) -> dict[int, dict[int, list[tuple[str, int, str]]]]:
    """Return label, number and name of the masks by task and annotation."""
    tasks: dict[int, dict[int, list[tuple[str, int, str]]]] = defaultdict(lambda: defaultdict(list))
    for name in folder.files_by_suffix().get(".png", ()):
        if match := MASK_NAME.fullmatch(posixpath.basename(name)):
            entry = (match["label"], int(match["number"]), name)
            tasks[int(match["task"])][int(match["annotation"])].append(entry)
    return tasks


def _read_masks(
    folder: DataFolder, tasks: Mapping[int, dict[int, list[tuple[str, int, str]]]]
) -> tuple[list[str], list[_Target]]:
    if several := sum(len(annotations) > 1 for annotations in tasks.values()):
        folder.notes.append(SEVERAL.format(several))
    json_files = folder.files_by_suffix().get(".json", ())
    written = {task["id"]: find_image(task) for name in json_files for task in read_tasks(folder, name)}
    images = _match_images(folder, {task: written.get(task, "") for task in sorted(tasks)})
    if by_number := [name for task, name in images.items() if name and not written.get(task)]:
        folder.notes.append(
            f"{len(by_number)} images, such as {by_number[0]}, have the number of their task as a name. If they are "
            "others, add the JSON export, which names the images."
        )
    names, targets = [], []
    for task, image in images.items():
        entries = sorted(tasks[task][max(tasks[task])], key=lambda entry: entry[1])
        if image is None:
            folder.report(entries[0][2], "missing image", f"no image of task {task}; add the JSON export next to it")
            continue
        names.append(image)
        targets.append(([(label, folder.path(name)) for label, _, name in entries], None))
    return names, targets


def _read_regions(folder: DataFolder, exports: list[str]) -> tuple[list[str], list[_Target]]:
    tasks = {task["id"]: task for name in exports for task in read_tasks(folder, name)}
    images = _match_images(folder, {task: find_image(tasks[task]) for task in tasks})
    names, targets, skipped = [], [], Counter[str]()
    several = without = 0
    for number, image in images.items():
        name = image or find_image(tasks[number]) or f"task {number}"
        try:
            annotations = find_annotations(tasks[number])
            regions = parse_regions(annotations[-1]) if annotations else None
        except ValueError as error:
            folder.report(name, "unreadable annotation", f"task {number}: {error}")
            continue
        several += len(annotations) > 1
        without += regions is None
        if regions is None:
            continue
        skipped += regions.skipped
        size = regions.size
        if image is None:
            folder.report(name, "missing image", f"no image of task {number}")
            continue
        try:
            size = size or read_size(folder.path(image))[0]
        except DECODER_ERRORS as error:
            folder.report(name, "unreadable image", " ".join(str(error).split()))
            continue
        names.append(image)
        targets.append((regions.shapes, size))
    if several:
        folder.notes.append(SEVERAL.format(several))
    if without:
        folder.notes.append(f"Skipped {without} tasks without an annotation.")
    if skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
        folder.notes.append(f"Skipped regions that are neither a labeled brush nor a labeled polygon: {kinds}.")
    return names, targets


def _match_images(folder: DataFolder, paths: Mapping[int, str]) -> dict[int, str | None]:
    """Return the image of each task, from its path in an export, or else from the number of the task."""
    index = FileIndex.of_images(folder)
    references = []
    for task, path in paths.items():
        base = posixpath.basename(path.replace("\\", "/").partition("?")[0])
        names = [base, UPLOAD_PREFIX.sub("", base)] if base else [str(task), f"task-{task}"]
        references.append(Reference([path or names[0], *names], names))
    return {task: name for task, (name, _) in zip(paths, match_files(index, references), strict=True)}
