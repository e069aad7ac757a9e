"""A saved detector in transformers' own pipeline and Auto classes: with this package, without it, and from the Hub."""

import copy
import json
from pathlib import Path

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

CODE = {
    "anchors_ssdlite.py",
    "boxes_ssdlite.py",
    "configuration_mobilevit.py",
    "configuration_mobilevit_ssdlite.py",
    "image_processing_mobilevit_ssdlite.py",
    "layers_mobilevit.py",
    "loss_ssdlite.py",
    "matcher_ssdlite.py",
    "modeling_mobilevit.py",
    "modeling_mobilevit_ssdlite.py",
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
    """What a pipeline has to answer for an upright image, step by step; and its boxes before they are clipped."""
    model = mobilevit_hf.MobileViTSSDLiteForObjectDetection.from_pretrained(folder)
    resized = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR))
    blue_green_red = np.ascontiguousarray(resized[..., ::-1].transpose(2, 0, 1)) / 255
    with torch.no_grad():
        outputs = model(torch.from_numpy(blue_green_red).float()[None])
    scores = outputs.logits[0].softmax(dim=-1)[:, 1:]  # the background comes first
    cx, cy, w, h = outputs.pred_boxes[0].unbind(dim=-1)
    boxes = torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), dim=-1)
    answers, unclipped = [], []
    for label, name in model.config.id2label.items():
        kept = nms(boxes, scores[:, label], 0.5)
        for i in kept[scores[kept, label] > threshold].tolist():
            corners = [value * side for value, side in zip(boxes[i].tolist(), image.size * 2, strict=True)]
            unclipped.append(corners)
            inside = [int(min(max(value, 0), side)) for value, side in zip(corners, image.size * 2, strict=True)]
            box = dict(zip(("xmin", "ymin", "xmax", "ymax"), inside, strict=True))
            answers.append({"score": float(scores[i, label]), "label": name, "box": box})
    return sorted(answers, key=lambda answer: -answer["score"]), torch.tensor(unclipped)


def assert_same_detections(found, expected, score=1e-4, pixels=1):
    """That two answers are the same set of objects, with scores and boxes that differ by rounding at most."""
    assert len(found) == len(expected) > 5
    assert [a["score"] for a in found] == sorted((a["score"] for a in found), reverse=True)
    left = list(found)
    for answer in expected:
        same = [
            other
            for other in left
            if other["label"] == answer["label"]
            and abs(other["score"] - answer["score"]) <= score
            and all(abs(other["box"][side] - answer["box"][side]) <= pixels for side in answer["box"])
        ]
        assert same, answer
        left.remove(same[0])


@pytest.fixture(scope="module")
def images(image):
    """Images of several shapes."""
    return {
        "landscape": image,
        "portrait": image.rotate(90, expand=True).resize((150, 200)),
        "panorama": image.resize((384, 64)),
        "tower": image.resize((50, 300)),
        "small": image.crop((10, 20, 40, 60)),
    }


# --- the saved directory ---------------------------------------------------------------------------------------------


def assert_complete(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == CODE | {"config.json", "model.safetensors", "preprocessor_config.json"}
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["auto_map"]) == ("mobilevit_ssdlite", AUTO_MAP)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["image_processor_type"] == "MobileViTSSDLiteImageProcessor"
    assert processor["auto_map"] == {
        "AutoImageProcessor": "image_processing_mobilevit_ssdlite.MobileViTSSDLiteImageProcessor"
    }


def test_a_saved_directory_is_complete_and_names_no_place(detector_dir):
    assert_complete(detector_dir)
    package = str(mobilevit_hf.__path__[0])
    places = [str(detector_dir.parent), package.removesuffix("/mobilevit_hf"), torch.__path__[0], "/home/", "/root/"]
    for path in detector_dir.iterdir():
        for place in places:
            assert place.encode() not in path.read_bytes(), (path.name, place)


# --- in this process -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["landscape", "portrait", "panorama", "tower", "small"])
def test_boxes_are_in_the_photos_own_pixels(shape, detector_dir, images):
    image = images[shape]
    expected, unclipped = detect(detector_dir, image)
    assert (unclipped < 0).any()
    assert (unclipped > torch.tensor(image.size * 2)).any()  # there is something to clip
    found = transformers.pipeline("object-detection", model=str(detector_dir))(image, threshold=THRESHOLD)
    # PIL and torchvision round a resized image differently, by one of 255 gray levels at most.
    assert_same_detections(found, expected, score=1e-3)


# The turn that a viewer undoes, by the number in the Exif entry 0x0112 (CIPA DC-008, section 4.6.5).
STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def test_boxes_are_those_of_the_upright_photo(detector_dir, image, tmp_path):
    pipelines = [
        make("object-detection", model=str(detector_dir)) for make in (transformers.pipeline, mobilevit_hf.pipeline)
    ]
    expected, _ = detect(detector_dir, image)
    for orientation, turn in STORED_AS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        (image if turn is None else image.transpose(turn)).save(path, exif=exif)
        for pipeline in pipelines:
            assert_same_detections(pipeline(str(path), threshold=THRESHOLD), expected, score=1e-3)


def test_lists_and_batches_give_the_answers_of_single_images(detector_dir, images):
    pipeline = transformers.pipeline("object-detection", model=str(detector_dir))
    sizes = []
    pipeline.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    singles = [pipeline(image, threshold=THRESHOLD) for image in images.values()]
    assert len({json.dumps(answer) for answer in singles}) == len(images)
    for batch_size, expected_sizes in ((1, [1] * 5), (2, [2, 2, 1])):
        sizes.clear()
        answers = pipeline(list(images.values()), threshold=THRESHOLD, batch_size=batch_size)
        assert sizes == expected_sizes
        for found, expected in zip(answers, singles, strict=True):
            assert_same_detections(found, expected)


def test_the_packages_pipeline_answers_as_transformers_does(detector_dir, images):
    ours = mobilevit_hf.pipeline("object-detection", str(detector_dir))
    stock = transformers.pipeline("object-detection", model=str(detector_dir))
    assert type(ours) is type(stock)
    for image in images.values():
        assert_same_detections(ours(image, threshold=THRESHOLD), stock(image, threshold=THRESHOLD), score=1e-3)


def test_the_threshold_is_the_callers(detector_dir, image):
    pipeline = transformers.pipeline("object-detection", model=str(detector_dir))
    default, everything = pipeline(image), pipeline(image, threshold=0.0)
    assert default
    assert all(answer["score"] > 0.5 for answer in default)
    assert len(everything) == 200  # max_detections
    assert pipeline(image, threshold=1.0) == []


@pytest.mark.parametrize("make", [transformers.pipeline, mobilevit_hf.pipeline])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_runs_in_half_precision(make, dtype, detector_dir, image):
    pipeline = make("object-detection", model=str(detector_dir), dtype=dtype)
    assert {parameter.dtype for parameter in pipeline.model.parameters()} == {dtype}
    best = detect(detector_dir, image)[0][0]
    found = [answer for answer in pipeline(image, threshold=THRESHOLD) if answer["label"] == best["label"]]
    assert any(
        answer["score"] == pytest.approx(best["score"], abs=0.05)
        and answer["box"] == pytest.approx(best["box"], abs=4)
        for answer in found
    )


def test_other_detectors_are_as_they_were(tmp_path):
    names = {"detr": "DetrForObjectDetection", "yolos": "YolosForObjectDetection"}
    assert names.items() <= MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.items()
    sides = {"image_size": [32, 32], "patch_size": 8, "num_detection_tokens": 2}
    config = YolosConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, **sides)
    transformers.YolosForObjectDetection(config).save_pretrained(tmp_path)
    transformers.YolosImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is YolosConfig
    assert type(AutoModelForObjectDetection.from_pretrained(tmp_path)) is transformers.YolosForObjectDetection
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is transformers.YolosImageProcessor


# --- in clean processes ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(detector_dir, run_python, tmp_path_factory):
    """A Hub with a detector and its image processor, pushed by this package's classes from a clean process."""
    code = f"""
        import mobilevit_hf

        mobilevit_hf.MobileViTSSDLiteForObjectDetection.from_pretrained({str(detector_dir)!r}).push_to_hub("user/detector")
        mobilevit_hf.MobileViTSSDLiteImageProcessor.from_pretrained({str(detector_dir)!r}).push_to_hub("user/detector")
        """
    with HubServer() as hub:
        run_python(code, hub.environment(tmp_path_factory.mktemp("home")))
        yield hub


@pytest.fixture(scope="module")
def answers(detector_dir, images, tmp_path_factory):
    """Files of two images, and this process's answers for them."""
    folder = tmp_path_factory.mktemp("images")
    chosen = {str(folder / f"{name}.png"): images[name] for name in ("landscape", "tower")}
    for path, image in chosen.items():
        image.save(path)
    pipeline = transformers.pipeline("object-detection", model=str(detector_dir))
    return {path: pipeline(image, threshold=THRESHOLD) for path, image in chosen.items()}


@pytest.mark.slow
def test_what_is_pushed_is_what_is_saved(hub, detector_dir):
    files = hub.files("user/detector")
    assert set(files) - {"README.md"} == {path.name for path in detector_dir.iterdir()}
    for path in detector_dir.iterdir():
        if path.name != "config.json":  # where a loaded model's says which precision it has
            assert files[path.name] == path.read_bytes(), path.name
    assert json.loads(files["config.json"])["auto_map"] == AUTO_MAP


@pytest.mark.slow
@pytest.mark.parametrize("without_package", [False, True])
def test_runs_at_home(without_package, hub, detector_dir, answers, run_python, tmp_path):
    """From a directory and from the Hub, by the pipeline and by each Auto class, and again where that is saved.

    Without this package the code comes with the model, and runs only where it is trusted.
    """
    code = f"""
        import builtins, json, sys
        import transformers
        {"" if without_package else "import mobilevit_hf"}

        def check_that_nothing_runs(sources):
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
                        raise AssertionError("it was loaded")
            assert not any(name.startswith("transformers_modules") for name in sys.modules)

        transformers.logging.disable_progress_bar()
        sources = [{str(detector_dir)!r}, "user/detector"]
        trust, home = {{}}, "mobilevit_hf.modeling."
        if {without_package}:
            check_that_nothing_runs(sources)
            transformers.logging.set_verbosity_error()  # it says which code it downloads
            trust, home = {{"trust_remote_code": True}}, "transformers_modules."
        # An exception would be taken for an answer.
        builtins.input = lambda *args: sys.exit("asked at the terminal")
        paths, answers = {list(answers)!r}, {{}}

        def run(source):
            detect = transformers.pipeline("object-detection", model=source, **trust)
            answers[source] = [
                [detect(path, threshold={THRESHOLD}) for path in paths],
                detect(paths, threshold={THRESHOLD}),
                detect(paths, threshold={THRESHOLD}, batch_size=2),
            ]
            assert type(detect.model).__module__.startswith(home), type(detect.model)
            return detect

        for source in sources:
            detect = run(source)
            again = {str(tmp_path)!r} + "/" + source.split("/")[-1]
            detect.model.save_pretrained(again)
            detect.image_processor.save_pretrained(again)
            run(again)
        if not {without_package}:
            assert not any(name.startswith("transformers_modules") for name in sys.modules)
        for source in sources:
            for auto_class, name in {CLASSES!r}.items():
                loaded = getattr(transformers, auto_class).from_pretrained(source, trust_remote_code=True)
                assert type(loaded).__name__ == name
                assert type(loaded).__module__.startswith(home), type(loaded)
        print(json.dumps(answers))
        """
    output = run_python(code, hub.environment(tmp_path / "home"), without_package=without_package, quiet=True)
    found, expected = json.loads(output), list(answers.values())
    assert len(found) == 4
    for runs in found.values():
        for run in runs:
            for one, other in zip(run, expected, strict=True):
                assert_same_detections(one, other)
    for folder in (tmp_path / detector_dir.name, tmp_path / "detector"):
        assert_complete(folder)
        for name in CODE:
            assert (folder / name).read_bytes() == (detector_dir / name).read_bytes()


# --- fine-tuning with transformers' Trainer --------------------------------------------------------------------------

COLORS = {"ball": (230, 40, 40), "cube": (40, 40, 230)}


def make_photo(i):
    """An image of noise with up to two colored rectangles; their boxes (x, y, w, h) in pixels and their names."""
    generator = np.random.default_rng(i)
    width, height = [(96, 64), (64, 96), (128, 128), (80, 60)][i % 4]
    pixels = generator.integers(0, 80, (height, width, 3), dtype=np.uint8)
    boxes, names = [], [["ball", "cube"], [], ["cube"], ["ball"]][(i + i // 4) % 4]
    for name, side in zip(names, (0, width // 2), strict=False):
        w, h = int(generator.integers(width // 4, width // 2)), int(generator.integers(height // 4, height // 2))
        x, y = side + int(generator.integers(0, width // 2 - w + 1)), int(generator.integers(0, height - h))
        pixels[y : y + h, x : x + w] = COLORS[name]
        boxes.append([x, y, w, h])
    return Image.fromarray(pixels), boxes, names


@pytest.fixture(scope="module")
def start(tiny_fields, tmp_path_factory):
    """A folder with a tiny detector to be trained, without dropout."""
    fields = tiny_fields | {"hidden_dropout_prob": 0.0}
    names = {"id2label": dict(enumerate(COLORS)), "label2id": {name: i for i, name in enumerate(COLORS)}}
    torch.manual_seed(0)
    classifier = mobilevit_hf.MobileViTForImageClassification(mobilevit_hf.MobileViTConfig(**fields | names))
    folder = tmp_path_factory.mktemp("start")
    classifier.save_pretrained(folder / "classifier")
    detector = mobilevit_hf.MobileViTSSDLiteForObjectDetection.from_backbone(
        folder / "classifier", id2label=names["id2label"], image_size=64
    )
    detector.save_pretrained(folder / "detector")
    return folder


@pytest.fixture(scope="module")
def examples():
    """Photos as `Trainer` takes them, one without objects."""
    processor = mobilevit_hf.MobileViTSSDLiteImageProcessor(size={"height": 64, "width": 64})
    rows = []
    for i in range(8):
        photo, boxes, names = make_photo(i)
        objects = [
            {"bbox": box, "category_id": list(COLORS).index(name)} for box, name in zip(boxes, names, strict=True)
        ]
        inputs = processor(photo, annotations={"image_id": i, "annotations": objects}, return_tensors="pt")
        rows.append({"pixel_values": inputs["pixel_values"][0], "labels": inputs["labels"][0]})
    return rows


def collate(rows):
    return {"pixel_values": torch.stack([r["pixel_values"] for r in rows]), "labels": [r["labels"] for r in rows]}


@pytest.fixture
def make_trainer(start, examples, tmp_path):
    """A function that makes a `Trainer` of the tiny detector on the CPU."""

    def make(name="run", collate=collate, compute_metrics=None, **arguments):
        model = mobilevit_hf.MobileViTSSDLiteForObjectDetection.from_pretrained(start / "detector")
        arguments = {"per_device_train_batch_size": 4, "max_steps": 4, "logging_steps": 1, "seed": 1} | arguments
        training = transformers.TrainingArguments(
            tmp_path / name,
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
            eval_do_concat_batches=False,
            **arguments,
        )
        return transformers.Trainer(
            model=model,
            args=training,
            data_collator=collate,
            train_dataset=examples,
            eval_dataset=examples,
            processing_class=mobilevit_hf.MobileViTSSDLiteImageProcessor(size={"height": 64, "width": 64}),
            compute_metrics=compute_metrics,
        )

    return make


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_gradient_accumulation_averages_the_batches(make_trainer):
    seen = []
    step = {"optim": "sgd", "learning_rate": 0.01, "lr_scheduler_type": "constant", "max_grad_norm": 0, "max_steps": 1}
    trainer = make_trainer(
        collate=lambda rows: seen.append(collate(rows)) or seen[-1], gradient_accumulation_steps=2, **step
    )
    expected = copy.deepcopy(trainer.model).train()
    trainer.train()
    assert len(seen) == 2
    losses = torch.stack([expected(**batch).loss for batch in seen])
    losses.mean().backward()
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter -= 0.01 * (0 if parameter.grad is None else parameter.grad)
    torch.testing.assert_close(trainer.model.state_dict(), expected.state_dict(), atol=1e-6, rtol=1e-4)
    assert losses_of(trainer) == [pytest.approx(losses.mean().item(), rel=1e-3)]
    assert losses.std() > 0.1  # or a weighted mean would be the same


def test_what_trainer_evaluates_is_what_the_model_finds(make_trainer, examples):
    given = []
    trainer = make_trainer(
        compute_metrics=lambda e: given.append(e) or {"n": len(given)}, per_device_eval_batch_size=3
    )
    assert trainer.evaluate()["eval_n"] == 1
    evaluation = given[0]
    assert [len(labels) for labels in evaluation.label_ids] == [3, 3, 2]
    labels = [label for batch in evaluation.label_ids for label in batch]
    for label, example, photo in zip(labels, examples, map(make_photo, range(8)), strict=True):
        assert label["boxes"] == pytest.approx(example["labels"]["boxes"].numpy())
        assert label["class_labels"].tolist() == example["labels"]["class_labels"].tolist()
        assert tuple(label["orig_size"]) == photo[0].size[::-1]
    with torch.no_grad():
        outputs = trainer.model.eval()(collate(examples)["pixel_values"])
    for i, name in enumerate(("logits", "pred_boxes")):
        found = np.concatenate([batch[i] for batch in evaluation.predictions])
        np.testing.assert_allclose(found, outputs[name].numpy(), atol=1e-4)
    assert all(len(batch) == 2 for batch in evaluation.predictions)


def test_a_resumed_training_ends_as_one_in_one_go(make_trainer):
    """And its checkpoints are complete."""
    whole = make_trainer("whole", save_steps=2)
    whole.train()
    checkpoint = Path(whole.args.output_dir) / "checkpoint-2"
    assert {path.name for path in checkpoint.iterdir()} >= CODE | {"config.json", "preprocessor_config.json"}
    assert {path.name for path in checkpoint.glob("*model*") if path.suffix != ".py"} == {"model.safetensors"}
    assert json.loads((checkpoint / "config.json").read_text())["auto_map"] == AUTO_MAP
    resumed = make_trainer("resumed", save_steps=2)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 4
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), atol=0, rtol=0)
    assert losses_of(resumed) == losses_of(whole)


def test_gradient_checkpointing_changes_no_loss(make_trainer):
    plain, checkpointed = (
        make_trainer(name, max_steps=2, gradient_checkpointing=name == "checkpointed")
        for name in ("plain", "checkpointed")
    )
    counts = []
    for trainer in (plain, checkpointed):
        calls = []
        layer = trainer.model.backbone.encoder.layer[-1].transformer.layer[0]
        layer.register_forward_hook(lambda *args, calls=calls: calls.append(1))
        trainer.train()
        counts.append(len(calls))
    assert counts == [2, 4]  # once more, for the gradient
    assert losses_of(checkpointed) == pytest.approx(losses_of(plain), rel=1e-3)


def test_the_loss_falls(make_trainer):
    trainer = make_trainer(learning_rate=3e-3, max_steps=20, bf16=True, dataloader_num_workers=1)
    trainer.train()
    losses = losses_of(trainer)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
