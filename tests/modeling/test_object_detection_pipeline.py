"""Saved detectors in transformers' pipeline and Auto classes: in-process, without this package, and from the Hub."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
import transformers
from hub_server import HubServer
from PIL import Image
from torchvision.ops import nms
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, YolosConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

import mobilevit_hf
from mobilevit_hf.metrics import CocoMap

CODE_FILES = {
    "anchors_ssdlite.py",
    "boxes_ssdlite.py",
    "configuration_mobilevit.py",
    "configuration_mobilevit_ssdlite.py",
    "finite.py",
    "image_processing_mobilevit_ssdlite.py",
    "layers_mobilevit.py",
    "loss_ssdlite.py",
    "matcher_ssdlite.py",
    "modeling_mobilevit.py",
    "modeling_mobilevit_ssdlite.py",
    "pipeline_mobilevit_ssdlite.py",
    "variants_mobilevit.py",
}


AUTO_MAP = {
    "AutoConfig": "configuration_mobilevit_ssdlite.MobileViTSSDLiteConfig",
    "AutoModelForObjectDetection": "modeling_mobilevit_ssdlite.MobileViTSSDLiteForObjectDetection",
}


CLASSES = {
    "AutoConfig": "MobileViTSSDLiteConfig",
    "AutoModelForObjectDetection": "MobileViTSSDLiteForObjectDetection",
    "AutoImageProcessor": "MobileViTSSDLiteImageProcessor",
}


THRESHOLD = 0.3


def detect(folder, image, threshold=THRESHOLD):
    """Compute the expected pipeline output for an upright image, and the boxes before clipping."""
    model = mobilevit_hf.MobileViTSSDLiteForObjectDetection.from_pretrained(folder)
    resized = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR))
    bgr = np.ascontiguousarray(resized[..., ::-1].transpose(2, 0, 1)) / 255
    with torch.no_grad():
        outputs = model(torch.from_numpy(bgr).float()[None])
    scores = outputs.logits[0].softmax(dim=-1)[:, 1:]  # background at index 0
    cx, cy, w, h = outputs.pred_boxes[0].unbind(dim=-1)
    boxes = torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), dim=-1)
    detections, unclipped = [], []
    for label, name in model.config.id2label.items():
        kept = nms(boxes, scores[:, label], 0.5)
        for i in kept[scores[kept, label] > threshold].tolist():
            corners = [value * side for value, side in zip(boxes[i].tolist(), image.size * 2, strict=True)]
            unclipped.append(corners)
            inside = [int(min(max(value, 0), side)) for value, side in zip(corners, image.size * 2, strict=True)]
            box = dict(zip(("xmin", "ymin", "xmax", "ymax"), inside, strict=True))
            detections.append({"score": float(scores[i, label]), "label": name, "box": box})
    return sorted(detections, key=lambda detection: -detection["score"]), torch.tensor(unclipped)


def assert_equal_detections(detections, expected, score=1e-4, pixels=1):
    """Compare two sets of detections up to rounding of scores and boxes."""
    assert len(detections) == len(expected) > 5
    scores = [detection["score"] for detection in detections]
    assert scores == sorted(scores, reverse=True)
    remaining = list(detections)
    for target in expected:
        matches = [
            detection
            for detection in remaining
            if detection["label"] == target["label"]
            and abs(detection["score"] - target["score"]) <= score
            and all(abs(detection["box"][side] - target["box"][side]) <= pixels for side in target["box"])
        ]
        assert matches, target
        remaining.remove(matches[0])


@pytest.fixture(scope="module")
def images(image):
    """Images of several aspect ratios."""
    return {
        "landscape": image,
        "portrait": image.rotate(90, expand=True).resize((150, 200)),
        "panorama": image.resize((384, 64)),
        "tower": image.resize((50, 300)),
        "small": image.crop((10, 20, 40, 60)),
    }


def assert_complete(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == CODE_FILES | {"config.json", "model.safetensors", "preprocessor_config.json"}
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["auto_map"]) == ("mobilevit_ssdlite", AUTO_MAP)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["image_processor_type"] == "MobileViTSSDLiteImageProcessor"
    assert processor["auto_map"] == {
        "AutoImageProcessor": "image_processing_mobilevit_ssdlite.MobileViTSSDLiteImageProcessor"
    }


def test_saved_directory_is_complete_and_contains_no_local_paths(detector_dir):
    assert_complete(detector_dir)
    package = str(mobilevit_hf.__path__[0])
    local_paths = [
        str(detector_dir.parent),
        package.removesuffix("/mobilevit_hf"),
        torch.__path__[0],
        "/home/",
        "/root/",
    ]
    for path in detector_dir.iterdir():
        for local_path in local_paths:
            assert local_path.encode() not in path.read_bytes(), (path.name, local_path)


@pytest.mark.parametrize("shape", ["landscape", "portrait", "panorama", "tower", "small"])
def test_pipeline_boxes_are_in_pixels_of_the_image(shape, detector_dir, images):
    image = images[shape]
    expected, unclipped = detect(detector_dir, image)
    assert (unclipped < 0).any()
    assert (unclipped > torch.tensor(image.size * 2)).any()  # so that clipping is tested
    detections = transformers.pipeline("object-detection", model=str(detector_dir))(image, threshold=THRESHOLD)
    # PIL and torchvision round resized images differently, by at most one of 255 levels.
    assert_equal_detections(detections, expected, score=1e-3)


# Transposition that a viewer reverts, by value of the Exif tag 0x0112 (CIPA DC-008, section 4.6.5).
TRANSPOSITIONS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def test_pipelines_apply_exif_orientation(detector_dir, image, tmp_path):
    pipelines = [
        make("object-detection", model=str(detector_dir)) for make in (transformers.pipeline, mobilevit_hf.pipeline)
    ]
    expected, _ = detect(detector_dir, image)
    for orientation, transposition in TRANSPOSITIONS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        (image if transposition is None else image.transpose(transposition)).save(path, exif=exif)
        for pipeline in pipelines:
            assert_equal_detections(pipeline(str(path), threshold=THRESHOLD), expected, score=1e-3)


def test_batches_equal_single_images(detector_dir, images):
    pipeline = transformers.pipeline("object-detection", model=str(detector_dir))
    sizes = []
    pipeline.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    singles = [pipeline(image, threshold=THRESHOLD) for image in images.values()]
    assert len({json.dumps(detections) for detections in singles}) == len(images)
    for batch_size, expected_sizes in ((1, [1] * 5), (2, [2, 2, 1])):
        sizes.clear()
        batched = pipeline(list(images.values()), threshold=THRESHOLD, batch_size=batch_size)
        assert sizes == expected_sizes
        for detections, expected in zip(batched, singles, strict=True):
            assert_equal_detections(detections, expected)


def test_pipeline_equals_transformers_pipeline(detector_dir, images):
    ours = mobilevit_hf.pipeline("object-detection", str(detector_dir))
    stock = transformers.pipeline("object-detection", model=str(detector_dir))
    assert type(ours) is type(stock)
    for image in images.values():
        assert_equal_detections(ours(image, threshold=THRESHOLD), stock(image, threshold=THRESHOLD), score=1e-3)


def test_pipeline_threshold(detector_dir, image):
    pipeline = transformers.pipeline("object-detection", model=str(detector_dir))
    default, everything = pipeline(image), pipeline(image, threshold=0.0)
    assert default
    assert all(detection["score"] > 0.5 for detection in default)
    assert len(everything) == 200  # max_detections
    assert pipeline(image, threshold=1.0) == []


@pytest.mark.parametrize("make", [transformers.pipeline, mobilevit_hf.pipeline])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_runs_in_half_precision(make, dtype, detector_dir, image):
    pipeline = make("object-detection", model=str(detector_dir), dtype=dtype)
    assert {parameter.dtype for parameter in pipeline.model.parameters()} == {dtype}
    best = detect(detector_dir, image)[0][0]
    detections = pipeline(image, threshold=THRESHOLD)
    assert any(
        detection["label"] == best["label"]
        and detection["score"] == pytest.approx(best["score"], abs=0.05)
        and detection["box"] == pytest.approx(best["box"], abs=4)
        for detection in detections
    )


def test_import_leaves_other_detectors_unchanged(tmp_path):
    names = {"detr": "DetrForObjectDetection", "yolos": "YolosForObjectDetection"}
    assert names.items() <= MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.items()
    sides = {"image_size": [32, 32], "patch_size": 8, "num_detection_tokens": 2}
    config = YolosConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, **sides)
    transformers.YolosForObjectDetection(config).save_pretrained(tmp_path)
    transformers.YolosImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is YolosConfig
    assert type(AutoModelForObjectDetection.from_pretrained(tmp_path)) is transformers.YolosForObjectDetection
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is transformers.YolosImageProcessor


@pytest.fixture(scope="module")
def hub(detector_dir, run_python, tmp_path_factory):
    """A Hub with a detector and its image processor, pushed from a clean process."""
    code = f"""
        import mobilevit_hf

        mobilevit_hf.MobileViTSSDLiteForObjectDetection.from_pretrained({str(detector_dir)!r}).push_to_hub("user/detector")
        mobilevit_hf.MobileViTSSDLiteImageProcessor.from_pretrained({str(detector_dir)!r}).push_to_hub("user/detector")
        """
    with HubServer() as hub:
        run_python(code, hub.environment(tmp_path_factory.mktemp("home")))
        yield hub


@pytest.fixture(scope="module")
def expected_detections(detector_dir, images, tmp_path_factory):
    """Detections of this process for two image files, by path."""
    folder = tmp_path_factory.mktemp("images")
    files = {str(folder / f"{name}.png"): images[name] for name in ("landscape", "tower")}
    for path, image in files.items():
        image.save(path)
    pipeline = transformers.pipeline("object-detection", model=str(detector_dir))
    return {path: pipeline(image, threshold=THRESHOLD) for path, image in files.items()}


@pytest.mark.slow
def test_pushed_files_equal_saved_files(hub, detector_dir):
    files = hub.files("user/detector")
    assert set(files) - {"README.md"} == {path.name for path in detector_dir.iterdir()}
    for path in detector_dir.iterdir():
        if path.name != "config.json":  # a loaded model's contains its dtype
            assert files[path.name] == path.read_bytes(), path.name
    assert json.loads(files["config.json"])["auto_map"] == AUTO_MAP


@pytest.mark.slow
@pytest.mark.parametrize("without_package", [False, True])
def test_detector_in_clean_process(without_package, hub, detector_dir, expected_detections, run_python, tmp_path):
    """From a directory, from the Hub, and from a copy saved again; by the pipeline and by each Auto class.

    Without this package, the code in the repository runs only with `trust_remote_code=True`.
    """
    code = f"""
        import builtins, json, sys
        import transformers
        {"" if without_package else "import mobilevit_hf"}

        def check_that_no_code_runs(sources):
            builtins.input = lambda *args: "no"
            loads = [getattr(transformers, name).from_pretrained for name in {list(CLASSES)!r}]
            loads.append(lambda source, **kwargs: transformers.pipeline("object-detection", source, **kwargs))
            for load in loads:
                for source, kwargs in zip(sources, ({{}}, {{"trust_remote_code": False}})):
                    try:
                        load(source, **kwargs)
                    except ValueError as error:
                        assert "Please pass the argument `trust_remote_code=True`" in str(error)
                    else:
                        raise AssertionError("the code was loaded")
            assert not any(name.startswith("transformers_modules") for name in sys.modules)

        transformers.logging.disable_progress_bar()
        sources = [{str(detector_dir)!r}, "user/detector"]
        trust, package = {{}}, "mobilevit_hf.modeling."
        if {without_package}:
            check_that_no_code_runs(sources)
            transformers.logging.set_verbosity_error()  # no warnings about downloaded code
            trust, package = {{"trust_remote_code": True}}, "transformers_modules."
        # transformers would handle an exception as a rejection.
        builtins.input = lambda *args: sys.exit("prompted at the terminal")
        paths, detections = {list(expected_detections)!r}, {{}}

        def run(source):
            detect = transformers.pipeline("object-detection", model=source, **trust)
            detections[source] = [
                [detect(path, threshold={THRESHOLD}) for path in paths],
                detect(paths, threshold={THRESHOLD}),
                detect(paths, threshold={THRESHOLD}, batch_size=2),
            ]
            assert type(detect.model).__module__.startswith(package), type(detect.model)
            return detect

        for source in sources:
            detect = run(source)
            copy = {str(tmp_path)!r} + "/" + source.split("/")[-1]
            detect.model.save_pretrained(copy)
            detect.image_processor.save_pretrained(copy)
            run(copy)
        if not {without_package}:
            assert not any(name.startswith("transformers_modules") for name in sys.modules)
        for source in sources:
            for auto_class, name in {CLASSES!r}.items():
                loaded = getattr(transformers, auto_class).from_pretrained(source, trust_remote_code=True)
                assert type(loaded).__name__ == name
                assert type(loaded).__module__.startswith(package), type(loaded)
        print(json.dumps(detections))
        """
    output = run_python(code, hub.environment(tmp_path / "home"), without_package=without_package, quiet=True)
    runs_by_source, expected = json.loads(output), list(expected_detections.values())
    assert len(runs_by_source) == 4
    for runs in runs_by_source.values():
        for run in runs:
            for detections, target in zip(run, expected, strict=True):
                assert_equal_detections(detections, target)
    for folder in (tmp_path / detector_dir.name, tmp_path / "detector"):
        assert_complete(folder)
        for name in CODE_FILES:
            assert (folder / name).read_bytes() == (detector_dir / name).read_bytes()


BCCD_CLASSES = ["RBC", "WBC", "Platelets"]


NUM_IMAGES = 8


STEPS = 150


def read_image(folder, name):
    """Return an image of BCCD with its boxes (x1, y1, x2, y2) in pixels and class indices."""
    cells = ET.parse(folder / "Annotations" / f"{name}.xml").findall("object")
    boxes = [[float(cell.find(f"bndbox/{edge}").text) for edge in ("xmin", "ymin", "xmax", "ymax")] for cell in cells]
    labels = [BCCD_CLASSES.index(cell.find("name").text) for cell in cells]
    return Image.open(folder / "JPEGImages" / f"{name}.jpg").convert("RGB"), boxes, labels


def train(model, batch):
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=STEPS)
    model.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


@pytest.mark.slow
def test_detector_overfits_training_images(reference_data, tmp_path):
    folder = reference_data / "data" / "bccd"
    names = (folder / "ImageSets" / "Main" / "train.txt").read_text().split()[:NUM_IMAGES]
    images, boxes, labels = zip(*(read_image(folder, name) for name in names), strict=True)

    mobilevit_hf.convert_checkpoint(
        reference_data / "weights" / "timm_mobilevit_xxs_backbone.pth", tmp_path / "backbone"
    )
    model = mobilevit_hf.MobileViTSSDLiteForObjectDetection.from_backbone(
        tmp_path / "backbone", id2label=dict(enumerate(BCCD_CLASSES))
    )
    processor = mobilevit_hf.MobileViTSSDLiteImageProcessor.from_backbone(tmp_path / "backbone")
    annotations = [
        {"annotations": [{"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": c} for (x1, y1, x2, y2), c in cells]}
        for cells in (zip(*pair, strict=True) for pair in zip(boxes, labels, strict=True))
    ]
    train(model, processor(images, annotations=annotations, return_tensors="pt"))
    model.save_pretrained(tmp_path / "detector")
    processor.save_pretrained(tmp_path / "detector")

    detector = transformers.pipeline("object-detection", model=str(tmp_path / "detector"))
    coco_map = CocoMap()
    for image, image_boxes, image_labels in zip(images, boxes, labels, strict=True):
        detections = detector(image, threshold=0.01)
        prediction = {
            "boxes": [
                [detection["box"][edge] for edge in ("xmin", "ymin", "xmax", "ymax")] for detection in detections
            ],
            "scores": [detection["score"] for detection in detections],
            "labels": [BCCD_CLASSES.index(detection["label"]) for detection in detections],
        }
        coco_map.add(prediction=prediction, reference={"boxes": image_boxes, "labels": image_labels})
    assert coco_map.compute()["map_50"] >= 0.95
