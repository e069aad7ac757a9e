"""An app's use of LiteRT files, by ai_edge_litert, numpy and Pillow: `python litert_app.py MODEL PHOTO...`.

Prints a list of predictions for each photo as JSON.
"""

import json
import sys
import zipfile

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image


def main(model, *photos):
    with zipfile.ZipFile(model) as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist()}
    labels = files["labels.txt"].splitlines()
    run = Interpreter(model).get_signature_runner()
    _, height, width, _ = map(int, run.get_input_details()["image"]["shape"])
    results = []
    for photo in photos:
        image = resize(Image.open(photo).convert("RGB"), width, height, files.get("crop_pct"))
        outputs = {name: values[0].tolist() for name, values in run(image=np.asarray(image)[None]).items()}
        if "boxes" not in outputs:
            outputs["labels"] = range(len(labels))
        columns = zip(*outputs.values(), strict=True)
        rows = [dict(zip(outputs, row, strict=True)) for row in columns]
        results.append([row | {"labels": labels[row["labels"]]} for row in rows if row["scores"] > 0])
    print(json.dumps(results))


def resize(image, width, height, crop_fraction):
    if not crop_fraction:
        return image.resize((width, height), Image.Resampling.BILINEAR)
    shortest = round(height / float(crop_fraction))
    image = image.resize([shortest * side // min(image.size) for side in image.size], Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


if __name__ == "__main__":
    main(*sys.argv[1:])
