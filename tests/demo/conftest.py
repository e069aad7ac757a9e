"""Fixtures of the demo tests."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

THRESHOLD = 0.02


@pytest.fixture(scope="module", autouse=True)
def _empty_caches(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOBILEVIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    if inference := sys.modules.get("mobilevit_hf.demo.inference"):  # requires gradio
        inference.load_pipeline.cache_clear()


@pytest.fixture(scope="module")
def models(checkpoints, detector_dir, tmp_path_factory):
    """Folders of a classifier and of a detector that recommends `THRESHOLD`, by task."""
    detector = Path(shutil.copytree(detector_dir, tmp_path_factory.mktemp("models") / "detector"))
    config = json.loads((detector / "config.json").read_text())
    (detector / "config.json").write_text(json.dumps(config | {"recommended_threshold": THRESHOLD}))
    return {"image-classification": str(checkpoints["image-classification"]), "object-detection": str(detector)}


@pytest.fixture(scope="module")
def files(image, tmp_path_factory):
    """Two images, one of them rotated by EXIF, and two files that are not images, by name."""
    folder = tmp_path_factory.mktemp("files")
    image.save(folder / "one.png")
    rotated = Image.Exif()
    rotated[274] = 6
    image.convert("CMYK").save(folder / "two.jpg", exif=rotated, quality=95)
    (folder / "broken.jpg").write_bytes(b"no image at all")
    (folder / "notes.txt").write_text("a text")
    return {path.name: path for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def stock_predictions(models, files, run_python):
    """A function that returns the predictions of stock transformers for a task and a file."""
    output = run_python(
        f"""
        import json, transformers
        from PIL import Image, ImageOps

        predictions = {{}}
        for task, folder in {models!r}.items():
            predict = transformers.pipeline(task, folder, trust_remote_code=True)
            options = {{"threshold": {THRESHOLD}}} if task == "object-detection" else {{"top_k": 3}}
            for path in {[str(files[name]) for name in ("one.png", "two.jpg")]!r}:
                image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
                predictions[f"{{task}} {{path}}"] = predict(image, **options)
        print(json.dumps(predictions))
        """,
        without_package=True,
    )
    predictions = json.loads(output)
    return lambda task, name: predictions[f"{task} {files[name]}"]
