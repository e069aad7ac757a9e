"""YOLO: `data.yaml` and a text file per image in `labels`, next to copies of the images in `images`.

Rows have no score: ultralytics rejects label files with a sixth column.
"""

from collections.abc import Sequence
from pathlib import Path

import yaml

from ...io import write_text
from .base import PredictedImage, PredictionWriter, box_corners, copy_image

DESCRIPTION, IMAGES = "data.yaml", "images"


class YoloWriter(PredictionWriter):
    """Writer of a YOLO dataset whose images are the training split. An image without boxes has an empty label file."""

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        super().__init__(path, classes)
        path.mkdir(parents=True, exist_ok=True)
        # ultralytics requires the key `val`.
        content = {"train": IMAGES, "val": None, "names": dict(enumerate(classes))}
        write_text(path / DESCRIPTION, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def is_written(self, name: str) -> bool:
        """Return whether the predictions of an image are in the output."""
        return self._label_file(name).is_file()

    def write(self, image: PredictedImage) -> None:
        """Copy an image and write its label file."""
        copy_image(image.content, self.path / IMAGES / image.name)
        width, height = image.size
        rows = []
        for prediction in image.predictions:
            x1, y1, x2, y2 = box_corners(prediction)
            values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            rows.append(" ".join([str(self.classes.index(prediction["label"])), *(f"{v:.10g}" for v in values)]))
        file = self._label_file(image.name)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, "".join(f"{row}\n" for row in rows))

    def finish(self) -> None:
        """Do nothing: every file is complete."""

    def _label_file(self, name: str) -> Path:
        """Return the path of an image's label file: that of the image, with `labels` for the last folder `images`."""
        stem = Path("/", IMAGES, name).with_suffix("").as_posix()
        before, _, after = stem.rpartition("/images/")
        return self.path / f"{before}/labels/{after}.txt".lstrip("/")
