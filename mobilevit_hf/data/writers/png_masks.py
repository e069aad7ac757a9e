"""Mask folders: a palette PNG per image in `masks`, `classes.txt`, and copies of the images in `images`."""

import json
from collections.abc import Sequence
from pathlib import Path

from ...io import write_text
from ..formats.mask_classes import parse_classes
from ..masks import MAX_CLASSES
from ..segments import make_label_map
from .base import PredictedImage, PredictionWriter, copy_image

IMAGES, MASKS, CLASSES, ID2LABEL = "images", "masks", "classes.txt", "id2label.json"


class PngMaskWriter(PredictionWriter):
    """Writer of masks whose values are class indices, shown in the colors of the classes.

    Raises:
        ValueError: If there are more classes than values.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        super().__init__(path, classes)
        if len(classes) > MAX_CLASSES:
            raise ValueError(f"output: got {len(classes)} classes, expected at most {MAX_CLASSES} for png. Use coco.")
        (path / MASKS).mkdir(parents=True, exist_ok=True)
        names = [" ".join(name.split()) for name in classes]
        text = "".join(f"{name}\n" for name in names)
        if [row.name for row in parse_classes(text, ".txt")] == names:
            write_text(path / CLASSES, text)
        else:  # such as `# road` and `1 car`, which are a comment, and a value with a name
            write_text(path / ID2LABEL, json.dumps(dict(enumerate(names)), indent=1))

    def is_written(self, name: str) -> bool:
        """Return whether the mask of an image is in the output."""
        return self._mask_file(name).is_file()

    def write(self, image: PredictedImage) -> None:
        """Copy an image and write its mask."""
        from ...visualization.masks import save_palette_png

        copy_image(image.content, self.path / IMAGES / image.name)
        file = self._mask_file(image.name)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_palette_png(file, make_label_map(image.predictions, self.classes), dict(enumerate(self.classes)))

    def finish(self) -> None:
        """Do nothing: every file is complete."""

    def _mask_file(self, name: str) -> Path:
        return (self.path / MASKS / name).with_suffix(".png")
