"""`mobilevit_hf.pipeline` gives the predictions of transformers' pipelines and has no side effects."""

import base64
import copy
import io
import itertools
import json
import pickle
import re
import threading

import numpy as np
import pytest
import torch
import transformers
from hostile_files import damaged_metadata, unusual_images
from hub_server import HubServer
from PIL import Image
from torch import nn
from transformers import MobileViTImageProcessor, ResNetConfig, ResNetForImageClassification
from transformers.pipelines.pt_utils import KeyDataset

import mobilevit_hf
from mobilevit_hf import pipelines
from mobilevit_hf.backends.quantization import _load_pixels
from mobilevit_hf.backends.runtime import ExportedModel
from mobilevit_hf.data.dataloader import make_batch
from mobilevit_hf.data.transforms import make_transform
from mobilevit_hf.data.types import Sample
from mobilevit_hf.evaluation.inference import prepare_ahead

TASKS = ["image-classification", "image-segmentation", "image-feature-extraction"]
tasks = pytest.mark.parametrize("task", TASKS)


def split_predictions(predictions):
    """Return scores or features as a tensor, labels, and masks as bytes."""
    if "mask" in predictions[0]:
        return None, [each["label"] for each in predictions], [each["mask"].tobytes() for each in predictions]
    if "score" in predictions[0]:
        return torch.tensor([each["score"] for each in predictions]), [each["label"] for each in predictions], None
    return torch.tensor(predictions), None, None


def assert_predictions_equal(actual, expected):
    (numbers, *labels), (expected_numbers, *expected_labels) = split_predictions(actual), split_predictions(expected)
    assert labels == expected_labels
    if expected_numbers is not None:
        torch.testing.assert_close(numbers, expected_numbers, atol=1e-5, rtol=1e-5)
        assert expected_numbers.std() > 1e-2  # the predictions differ from each other


def is_channels_last(model):
    """Return whether all convolutions are in channels_last, where that differs from the contiguous format."""
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    distinct = [weight for weight in weights if weight.shape[1] > 1 and weight.shape[2] > 1]
    assert distinct
    assert len({weight.is_contiguous(memory_format=torch.channels_last) for weight in distinct}) == 1
    return distinct[0].is_contiguous(memory_format=torch.channels_last)


def has_batch_norm(model):
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


# --- predictions -----------------------------------------------------------------------------------------------------


@tasks
@pytest.mark.parametrize("kind", ["image", "path", "object"])
def test_predictions_equal_transformers(task, kind, checkpoints, image, tmp_path):
    folder = str(checkpoints[task])
    image.save(tmp_path / "image.png")
    source = str(tmp_path / "image.png") if kind == "path" else image
    stock = transformers.pipeline(task, model=folder)
    assert stock.model.__module__.startswith("transformers.")
    if kind == "object":
        model = getattr(mobilevit_hf, type(stock.model).__name__).from_pretrained(folder)
        ours = mobilevit_hf.pipeline(task, model, image_processor=folder)
    else:
        ours = mobilevit_hf.pipeline(task, folder)
    assert type(ours) is type(stock)
    assert type(ours.model) is getattr(mobilevit_hf, type(stock.model).__name__)
    assert_predictions_equal(ours(source), stock(source))


@pytest.mark.parametrize("task", ["image-classification", "image-feature-extraction"])
def test_batches_give_the_predictions_of_single_images(task, checkpoints, image):
    images = [image, image.rotate(90, expand=True), image.crop((10, 10, 50, 90))]
    pipeline = mobilevit_hf.pipeline(task, str(checkpoints[task]), batch_size=2)
    sizes = []
    pipeline.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    predictions = pipeline(images)
    assert sizes == [2, 1]
    stock = transformers.pipeline(task, str(checkpoints[task]))
    for actual, expected in zip(predictions, map(stock, images), strict=True):
        assert_predictions_equal(actual, expected)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_segments_of_images_of_any_size_equal_transformers(batch_size, segmenter_dir, image):
    images = [image, image.rotate(90, expand=True), image.crop((10, 10, 50, 90)), image.resize((900, 33))]
    segment = mobilevit_hf.pipeline("image-segmentation", segmenter_dir)
    stock = transformers.pipeline("image-segmentation", str(segmenter_dir))
    results = segment((image for image in images), batch_size=batch_size)
    for each, segments in zip(images, results, strict=True):
        expected = stock(each)
        assert [(s["score"], s["label"]) for s in segments] == [(s["score"], s["label"]) for s in expected]
        assert len(expected) >= 3
        for actual, stock_segment in zip(segments, expected, strict=True):
            assert actual["mask"].mode == stock_segment["mask"].mode == "L"
            np.testing.assert_array_equal(np.asarray(actual["mask"]), np.asarray(stock_segment["mask"]))
    with pytest.raises(ValueError, match="subtask: got 'panoptic', expected 'semantic'"):
        segment(image, subtask="panoptic")


def test_stock_pipeline_in_a_clean_process_segments_alike(segmenter_dir, image, tmp_path, run_python):
    """Without this package, on an image that is not square."""
    image.resize((150, 60)).save(tmp_path / "image.png")
    code = f"""
        import json
        import numpy as np
        from transformers import pipeline

        segments = pipeline("image-segmentation", {str(segmenter_dir)!r})({str(tmp_path / "image.png")!r})
        print(json.dumps({{s["label"]: np.packbits(np.asarray(s["mask"]) > 0).tolist() for s in segments}}))
    """
    expected = json.loads(run_python(code, without_package=True).splitlines()[-1])
    assert len(expected) >= 3
    segments = mobilevit_hf.pipeline("image-segmentation", segmenter_dir)(str(tmp_path / "image.png"))
    assert {s["label"]: np.packbits(np.asarray(s["mask"]) > 0).tolist() for s in segments} == expected


def test_model_may_be_a_path_object(checkpoints, image):
    folder = checkpoints["image-classification"]
    pipeline = mobilevit_hf.pipeline("image-classification", folder)
    assert type(pipeline.model) is mobilevit_hf.MobileViTForImageClassification
    assert_predictions_equal(pipeline(image), transformers.pipeline("image-classification", folder)(image))


def test_model_may_be_the_name_of_a_builtin_model(image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = mobilevit_hf.pipeline("object-detection", mobilevit_hf.builtin("blood-cells"))(image)
    assert mobilevit_hf.pipeline("object-detection", "blood-cells")(image) == expected


def test_arguments_are_passed_to_transformers(checkpoints, image):
    folder = str(checkpoints["image-classification"])
    pipeline = mobilevit_hf.pipeline("image-classification", folder, top_k=2, function_to_apply="none")
    stock = transformers.pipeline("image-classification", folder, top_k=2, function_to_apply="none")
    assert len(pipeline(image)) == 2
    assert_predictions_equal(pipeline(image), stock(image))
    eager = {"attn_implementation": "eager"}
    model = mobilevit_hf.pipeline("image-classification", folder, model_kwargs=eager).model
    assert model.config._attn_implementation == "eager"


def test_runs_in_bfloat16(checkpoints, image):
    folder = str(checkpoints["image-classification"])
    pipeline = mobilevit_hf.pipeline("image-classification", folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in pipeline.model.parameters()} == {torch.bfloat16}
    scores = {each["label"]: each["score"] for each in pipeline(image)}
    stock = transformers.pipeline("image-classification", folder)
    assert scores == pytest.approx({each["label"]: each["score"] for each in stock(image)}, abs=0.05)


def test_other_architectures_run_in_transformers(image, tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    MobileViTImageProcessor(size={"shortest_edge": 32}, do_center_crop=False).save_pretrained(tmp_path)
    pipeline = mobilevit_hf.pipeline("image-classification", str(tmp_path))
    assert type(pipeline.model) is ResNetForImageClassification
    assert has_batch_norm(pipeline.model)
    assert pipeline(image) == transformers.pipeline("image-classification", str(tmp_path))(image)


# --- decoding --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unusual_files(tmp_path_factory):
    """Images that lose something as RGB, are rotated by EXIF, or are of rare formats, by name."""
    folder = tmp_path_factory.mktemp("unusual")
    for name, data in unusual_images(np.random.default_rng(0)).items():
        (folder / name).write_bytes(data)
    return {path.name: path for path in sorted(folder.iterdir())}


def test_every_path_gives_the_model_the_pixels_of_transformers(checkpoints, unusual_files):
    folder = str(checkpoints["image-classification"])
    stock = transformers.pipeline("image-classification", folder)
    ours = mobilevit_hf.pipeline("image-classification", folder)
    processor = stock.image_processor
    samples = [Sample(name, path, label=0) for name, path in unusual_files.items()]
    rows = [Sample(name, path.read_bytes(), label=0) for name, path in unusual_files.items()]
    transform = make_transform("image-classification", processor, training=False)
    evaluated = list(prepare_ahead(processor, enumerate(samples), ahead=2))
    calibration, problems = _load_pixels(processor, rows)
    assert problems == []
    for i, (name, path) in enumerate(unusual_files.items()):
        expected = stock.preprocess(str(path))["pixel_values"]
        pixels = {
            "pipeline": ours.preprocess(str(path))["pixel_values"],
            "pipeline, decoded": ours.preprocess(Image.open(path))["pixel_values"],
            "evaluation": evaluated[i].inputs["pixel_values"],
            "evaluation in training": make_batch([(0, samples[i])], transform)["pixel_values"],
            "row of a dataset": make_batch([(0, rows[i])], transform)["pixel_values"],
            "calibration": calibration[i : i + 1],
        }
        for source, values in pixels.items():
            assert torch.equal(values, expected), f"{name}: {source}"


def test_command_predicts_as_transformers(checkpoints, unusual_files, mobilevit):
    folder = str(checkpoints["image-classification"])
    stock = transformers.pipeline("image-classification", folder)
    parent = unusual_files["rgba.png"].parent
    code, out, err = mobilevit("predict", parent, "--model", folder, "--json", "--device", "cpu")
    assert code == 0
    assert all(line.endswith("animated; predicted on its first frame.") for line in err.splitlines())
    predicted = {line["image"]: line["predictions"] for line in map(json.loads, out.splitlines())}
    assert predicted.keys() == set(map(str, unusual_files.values()))
    for path, predictions in predicted.items():
        assert_predictions_equal(predictions, stock(path))


def test_damaged_metadata_costs_no_prediction(checkpoints, tmp_path):
    ours = mobilevit_hf.pipeline("image-classification", str(checkpoints["image-classification"]))
    for name, (damaged, intact) in damaged_metadata(np.random.default_rng(0)).items():
        (tmp_path / name).write_bytes(damaged)
        expected = ours(Image.open(io.BytesIO(intact)))
        assert ours(str(tmp_path / name)) == expected
        if name in ("exif.jpg", "second frame.mpo"):  # which Pillow opens
            assert ours(Image.open(tmp_path / name)) == expected


def test_unreadable_image_is_named(checkpoints, tmp_path):
    ours = mobilevit_hf.pipeline("image-classification", str(checkpoints["image-classification"]))
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.jpg: not an image"):
        ours(str(tmp_path / "a.jpg"))


def test_base64_is_passed_to_transformers(checkpoints, image):
    image.save(data := io.BytesIO(), "PNG")
    text = base64.b64encode(data.getvalue()).decode()
    ours = mobilevit_hf.pipeline("image-classification", str(checkpoints["image-classification"]))
    assert ours(f"data:image/png;base64,{text}") == ours(text) == ours(image)


# --- the model -------------------------------------------------------------------------------------------------------


@tasks
def test_model_has_folded_batch_norm_and_channels_last(task, checkpoints):
    model = mobilevit_hf.pipeline(task, str(checkpoints[task])).model
    assert not has_batch_norm(model)
    assert is_channels_last(model)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("as_object", [True, False])
@pytest.mark.parametrize("model_class", ["MobileViTForImageClassification", "ResNetForImageClassification"])
def test_weights_that_are_not_finite_are_rejected(model_class, as_object, tiny_model, checkpoints, tmp_path):
    processor = str(checkpoints["image-classification"])
    if model_class == "MobileViTForImageClassification":
        model, name = tiny_model(mobilevit_hf.MobileViTForImageClassification), "classifier.bias"
    else:
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
        model, name = ResNetForImageClassification(config), "classifier.1.bias"
    torch.nn.init.constant_(model.get_parameter(name), float("inf"))
    model.save_pretrained(tmp_path)
    source, title = (model, model_class) if as_object else (str(tmp_path), str(tmp_path))
    with pytest.raises(ValueError, match=f"^{re.escape(title)}: got infinity in {re.escape(name)}, expected finite"):
        mobilevit_hf.pipeline("image-classification", source, image_processor=processor)


def test_image_of_a_non_finite_output_is_indexed(overflowing_dir):
    pipeline = mobilevit_hf.pipeline("image-classification", str(overflowing_dir))
    black, white = (Image.new("RGB", (64, 64), color) for color in ("black", "white"))
    assert len(pipeline([black, black], batch_size=2)) == 2
    with pytest.raises(ValueError, match="image 1 of the batch: got NaN in logits"):
        pickle.loads(pickle.dumps(pipeline))([black, white, black], batch_size=3)


@pytest.mark.parametrize("training", [True, False])
def test_model_object_is_not_modified(training, checkpoints, image):
    folder = checkpoints["image-classification"]
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(folder).train(training)
    state_dict = copy.deepcopy(model.state_dict())
    storage = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    pipeline = mobilevit_hf.pipeline("image-classification", model, image_processor=str(folder))
    pipeline(image)
    assert pipeline.model is not model
    assert has_batch_norm(model)
    assert not is_channels_last(model)
    assert all(module.training == training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model.state_dict(), state_dict, atol=0, rtol=0)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == storage


def test_saving_a_pipeline_writes_a_complete_checkpoint_or_fails(checkpoints, image, tmp_path):
    """Folded weights under a checkpoint's names would load with random batch normalization."""
    pipeline = mobilevit_hf.pipeline("image-classification", str(checkpoints["image-classification"]))
    try:
        pipeline.save_pretrained(tmp_path)
    except ValueError:
        assert not (tmp_path / "model.safetensors").exists()
    else:
        stock = transformers.pipeline("image-classification", str(tmp_path))
        assert_predictions_equal(stock(image), pipeline(image))


def test_image_processor_saves_as_that_of_transformers_and_the_given_one_is_unchanged(checkpoints, image, tmp_path):
    processor = MobileViTImageProcessor.from_pretrained(checkpoints["image-classification"])
    pipeline = mobilevit_hf.pipeline(
        "image-classification", str(checkpoints["image-classification"]), image_processor=processor
    )
    assert type(processor) is MobileViTImageProcessor
    pipeline.image_processor.save_pretrained(tmp_path)
    loaded = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is MobileViTImageProcessor
    assert loaded.to_dict() == processor.to_dict()
    for source in (image, np.array(image)):
        expected = processor(source, return_tensors="pt").pixel_values
        assert torch.equal(pipeline.image_processor(source, return_tensors="pt").pixel_values, expected)


# --- the allocator ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_allocator_is_tuned_only_on_request(checkpoints, run_python):
    """Calls of glibc's mallopt are recorded from the import on."""
    code = f"""
        import ctypes, platform

        import torch, transformers  # their own calls are not recorded

        calls, load = [], ctypes.CDLL

        class Recorder:
            def __init__(self, *args, **kwargs):
                self.library, self.args = load(*args, **kwargs), args

            def __getattr__(self, name):
                function = getattr(self.library, name)
                if name != "mallopt":
                    return function
                return lambda *args: calls.append(args) or function(*args)

        ctypes.CDLL = Recorder
        import mobilevit_hf
        from PIL import Image

        image = Image.new("RGB", (80, 64), "orange")
        classify = mobilevit_hf.pipeline("image-classification", {str(checkpoints["image-classification"])!r})
        expected = classify(image)
        assert calls == [], calls

        glibc = platform.libc_ver()[0] == "glibc"
        assert mobilevit_hf.tune_allocator() is glibc
        assert len(calls) == (3 if glibc else 0)
        assert classify(image) == expected
        """
    run_python(code)


# --- threads ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def exported_pipeline(checkpoints):
    """Return a function that creates the pipeline of an exported classifier with a given runtime."""

    def create(runtime):
        folder = checkpoints["image-classification"]
        config = transformers.MobileViTConfig.from_pretrained(folder)
        model_class = type("MobileViTForImageClassification", (ExportedModel,), {})
        model = model_class(config, "image-classification", runtime, 0)
        processor = MobileViTImageProcessor.from_pretrained(folder)
        return pipelines._create_pipeline("image-classification", model=model, image_processor=processor, device="cpu")

    return create


def mean_colors(pixels):
    """Logits of a fake runtime, which differ between images."""
    return [np.concatenate([pixels.mean((2, 3)), pixels.max((2, 3))], axis=1)[:, :3]]


@pytest.mark.parametrize("call", ["single", "list", "generator"])
def test_exported_models_are_pre_and_post_processed_by_one_torch_thread(
    call, exported_pipeline, image, two_torch_threads
):
    pipeline, numbers = exported_pipeline(mean_colors), []

    def record(function):
        return lambda *args, **kwargs: numbers.append(torch.get_num_threads()) or function(*args, **kwargs)

    pipeline.preprocess, pipeline.postprocess = record(pipeline.preprocess), record(pipeline.postprocess)
    results = [None] * 8

    def run(index):
        before = torch.get_num_threads()
        if call == "single":
            pipeline(image)
        elif call == "list":
            pipeline([image] * 3, batch_size=2)
        else:
            list(pipeline(image for _ in range(3)))
        with pytest.raises(TypeError, match="Incorrect format"):
            pipeline(5)
        results[index] = before, torch.get_num_threads()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [(2, 2)] * 8
    assert set(numbers) == {1}
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("exported", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_lists_generators_and_datasets_give_the_outputs_of_transformers(
    exported, batch_size, checkpoints, exported_pipeline, image
):
    images = [image.rotate(20 * i) for i in range(5)]
    if exported:
        ours = exported_pipeline(mean_colors)
        stock = transformers.ImageClassificationPipeline(model=ours.model, image_processor=ours.image_processor)
    else:
        folder = str(checkpoints["image-classification"])
        ours, stock = (make("image-classification", folder) for make in (mobilevit_hf.pipeline, transformers.pipeline))
    dataset = KeyDataset([{"image": each} for each in images], "image")
    generators = [(each for each in images) for _ in range(2)]
    for inputs, same_inputs in ((images, images), generators, (dataset, dataset)):
        actual, expected = ours(inputs, batch_size=batch_size), stock(same_inputs, batch_size=batch_size)
        assert isinstance(actual, list) == isinstance(expected, list)
        if inputs is dataset:
            assert len(actual) == len(expected)
        pairs = list(zip(actual, expected, strict=True))
        assert len(pairs) == len(images)
        for prediction, reference in pairs:
            assert_predictions_equal(prediction, reference)


@pytest.mark.parametrize("exported", [True, False])
def test_next_images_are_preprocessed_while_the_model_runs(exported, checkpoints, exported_pipeline, image):
    started = [threading.Event() for _ in range(4)]
    calls = itertools.count(1)

    def wait_for_next(*args):
        following = next(calls)
        assert following == len(started) or started[following].wait(10)

    if exported:
        pipeline = exported_pipeline(lambda pixels: wait_for_next() or mean_colors(pixels))
    else:
        pipeline = mobilevit_hf.pipeline("image-classification", str(checkpoints["image-classification"]))
        pipeline.model.register_forward_pre_hook(wait_for_next)
    preprocess, counter = pipeline.preprocess, itertools.count()
    pipeline.preprocess = lambda *args, **kwargs: started[next(counter)].set() or preprocess(*args, **kwargs)
    assert len(list(pipeline([image] * 4))) == 4


@pytest.mark.parametrize("exported", [True, False])
def test_generators_are_consumed_lazily_and_answered_at_once(exported, checkpoints, exported_pipeline, image):
    if exported:
        pipeline = exported_pipeline(mean_colors)
    else:
        pipeline = mobilevit_hf.pipeline("image-classification", str(checkpoints["image-classification"]))
    requested, drawn = threading.Semaphore(1), []  # transformers draws the first image at once

    def requests():
        while True:
            assert requested.acquire(timeout=10)
            drawn.append(image)
            yield image

    predictions = iter(pipeline(requests()))
    for _ in range(3):
        assert next(predictions)
        requested.release()
    for _ in range(100):
        requested.release()
    next(predictions)
    assert len(drawn) < 30


# --- the Hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(checkpoints, run_python, tmp_path_factory):
    """A Hub with a classifier and its image processor, pushed from a clean process."""
    code = f"""
        import mobilevit_hf, transformers

        folder = {str(checkpoints["image-classification"])!r}
        mobilevit_hf.MobileViTForImageClassification.from_pretrained(folder).push_to_hub("user/repo")
        transformers.AutoImageProcessor.from_pretrained(folder).push_to_hub("user/repo")
        """
    with HubServer() as hub:
        run_python(code, hub.environment(tmp_path_factory.mktemp("home")))
        yield hub


@pytest.mark.slow
def test_pushed_files_equal_the_saved_files(published, checkpoints):
    files = published.files("user/repo")
    folder = checkpoints["image-classification"]
    for name in ("config.json", "preprocessor_config.json"):
        assert json.loads(files[name]) == json.loads((folder / name).read_text())
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert not any(name.endswith((".bin", ".py")) for name in files)


@pytest.mark.slow
@pytest.mark.parametrize("without_package", [True, False])
def test_runs_from_the_hub(published, checkpoints, image, run_python, tmp_path, without_package):
    image.save(tmp_path / "image.png")
    code = f"""
        import json, transformers
        from PIL import Image

        without_package, image = {without_package!r}, Image.open({str(tmp_path / "image.png")!r})
        if without_package:
            model = transformers.MobileViTForImageClassification.from_pretrained("user/repo")
        else:
            import mobilevit_hf
            model = mobilevit_hf.MobileViTForImageClassification.from_pretrained("user/repo")
        make_pipeline = transformers.pipeline if without_package else mobilevit_hf.pipeline
        pixels = transformers.AutoImageProcessor.from_pretrained("user/repo")(image, return_tensors="pt")
        scores = model.eval()(**pixels).logits[0].softmax(-1).tolist()
        predictions = make_pipeline("image-classification", "user/repo")(image)
        print(json.dumps([predictions, dict(zip(model.config.id2label.values(), scores))]))
        """
    output = run_python(code, published.environment(tmp_path), without_package=without_package)
    predictions, scores = json.loads(output)
    stock = transformers.pipeline("image-classification", str(checkpoints["image-classification"]))
    assert_predictions_equal(predictions, stock(image))
    assert scores == pytest.approx({each["label"]: each["score"] for each in stock(image)}, abs=1e-5)


def test_threads_below_one_are_an_error():
    with pytest.raises(ValueError, match="threads: got 0, expected at least 1"):
        mobilevit_hf.pipeline("image-classification", "x", threads=0)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_model_of_another_task_is_an_error(backend, checkpoints, detector_dir, monkeypatch):
    monkeypatch.setattr(pipelines, "check_backend", lambda *args, **kwargs: None)  # the packages need not be installed
    classifier = checkpoints["image-classification"]
    with pytest.raises(ValueError, match=rf"^{classifier}: got MobileViTForImageClassification, expected an object"):
        mobilevit_hf.pipeline("object-detection", classifier, backend=backend)
    with pytest.raises(ValueError, match=rf"^{detector_dir}: got MobileViTSSDLite.*, expected an image classifier"):
        mobilevit_hf.pipeline("image-classification", detector_dir, backend=backend)


@pytest.mark.parametrize(
    ("backend", "architecture"), [("torch", "mobilevit"), ("onnx", "mobilevit"), ("torch", "resnet")]
)
def test_damaged_weights_and_missing_image_processor_are_errors(backend, architecture, classifier_dir, monkeypatch):
    if architecture == "resnet":
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
        ResNetForImageClassification(config).save_pretrained(classifier_dir)
    monkeypatch.setattr(pipelines, "check_backend", lambda *args, **kwargs: None)
    (classifier_dir / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=rf"^{classifier_dir}: got no preprocessor_config\.json, expected [^\n]*$"):
        mobilevit_hf.pipeline("image-classification", classifier_dir, backend=backend)
    (classifier_dir / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=rf"^{classifier_dir}: model\.safetensors can't be read \([^\n]*$"):
        mobilevit_hf.pipeline("image-classification", classifier_dir, backend=backend)


def test_folder_of_exports_needs_a_backend(classifier_dir):
    (classifier_dir / "model.safetensors").unlink()
    (classifier_dir / "export.json").write_text('[{"backend": "openvino", "file": "openvino/openvino_model.xml"}]')
    with pytest.raises(ValueError, match=r'got exported models only \(openvino\).*or backend="openvino"\.$'):
        mobilevit_hf.pipeline("image-classification", classifier_dir)
