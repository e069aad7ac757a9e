"""Pascal VOC: an XML file per image in `Annotations`, next to copies of the images in `JPEGImages`."""

import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ...io import write_text
from .base import PredictedImage, PredictionWriter, box_corners, copy_image

ANNOTATIONS, IMAGES, LIST = "Annotations", "JPEGImages", "ImageSets/Main/train.txt"
# Characters that XML can't contain.
INVALID = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class VocWriter(PredictionWriter):
    """Writer of a Pascal VOC dataset, whose images are the training split, with a `score` in each object."""

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        super().__init__(path, classes)
        (path / ANNOTATIONS).mkdir(parents=True, exist_ok=True)

    def is_written(self, name: str) -> bool:
        """Return whether the predictions of an image are in the output."""
        return self._xml_file(name).is_file()

    def write(self, image: PredictedImage) -> None:
        """Copy an image and write its XML file."""
        copy_image(image.content, self.path / IMAGES / image.name)
        file = self._xml_file(image.name)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, _make_xml(image))

    def finish(self) -> None:
        """Write the list of all images."""
        root = self.path / ANNOTATIONS
        names = sorted(file.relative_to(root).with_suffix("").as_posix() for file in root.rglob("*.xml"))
        (self.path / LIST).parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path / LIST, "".join(f"{name}\n" for name in names))

    def _xml_file(self, name: str) -> Path:
        return (self.path / ANNOTATIONS / name).with_suffix(".xml")


def _make_xml(image: PredictedImage) -> str:
    root = ElementTree.Element("annotation")
    folder, file = posixpath.split(f"{IMAGES}/{image.name}")
    _add(root, {"folder": folder, "filename": file})
    _add(ElementTree.SubElement(root, "size"), {"width": image.size[0], "height": image.size[1], "depth": 3})
    for prediction in image.predictions:
        entry = ElementTree.SubElement(root, "object")
        _add(entry, {"name": prediction["label"], "difficult": 0, "score": f"{prediction['score']:.6g}"})
        corners = zip(("xmin", "ymin", "xmax", "ymax"), box_corners(prediction), strict=True)
        _add(ElementTree.SubElement(entry, "bndbox"), dict(corners))
    ElementTree.indent(root)
    return f"{ElementTree.tostring(root, encoding='unicode')}\n"


def _add(element: ElementTree.Element, texts: dict[str, Any]) -> None:
    """Add subelements with texts."""
    for tag, text in texts.items():
        ElementTree.SubElement(element, tag).text = INVALID.sub("\N{REPLACEMENT CHARACTER}", str(text))
