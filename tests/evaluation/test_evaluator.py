import copy
import dataclasses
import json
import math
import os
import pickle
import socket
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import transformers
from dataset_files import make_images, png_bytes
from evaluation_cases import save_balanced_classifier
from metric_cases import compute_pycocotools
from PIL import Image
from transformers import AutoImageProcessor, YolosConfig, YolosForObjectDetection, YolosImageProcessor

import mobilevit_hf
from mobilevit_hf.data.types import Objects, Sample
from mobilevit_hf.evaluation import evaluate_model, evaluator

NAMES = ["cat", "dog", "fish", "owl"]


@pytest.fixture(scope="module")
def classifier(tiny_fields, tmp_path_factory):
    """A tiny classifier that predicts every class, and its processor."""
    folder = save_balanced_classifier(tmp_path_factory.mktemp("classifier"), tiny_fields)
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(folder)
    return model, AutoImageProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def classification(classifier):
    """A classifier, its processor and labeled images, two of them unreadable."""
    samples = [Sample(f"{i}.png", png_bytes(image), label=i * i % 4) for i, image in enumerate(make_images(17))]
    for i in (3, 8):
        samples[i] = dataclasses.replace(samples[i], image=b"no image")
    return *classifier, samples


@pytest.fixture(scope="module")
def detection(detector_dir):
    """A detector, its processor and images with objects near its detections; none on the first and last image."""
    detect = mobilevit_hf.pipeline("object-detection", str(detector_dir))
    generator = np.random.default_rng(0)
    samples = []
    for i, image in enumerate(make_images(7, size=(200, 150))):
        detected = detect(image, threshold=0.3)[: 0 if i in (0, 6) else 30 : 1 + i % 3]
        boxes = [[side + generator.normal(0, 3) for side in prediction["box"].values()] for prediction in detected]
        boxes = [[x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)] for x1, y1, x2, y2 in boxes]
        labels = [NAMES.index(prediction["label"]) for prediction in detected]
        crowd = (generator.random(len(detected)) < 0.1).astype(int).tolist()
        samples.append(Sample(f"{i}.png", png_bytes(image), objects=Objects.from_lists(boxes, labels, crowd)))
    return detect.model, detect.image_processor, samples


def label_all(count, label):
    return [Sample(str(i), png_bytes(image), label=label) for i, image in enumerate(make_images(count))]


# --- one process -----------------------------------------------------------------------------------------------------


def test_top_5_accuracy_equals_that_of_the_pipeline(tiny_model, classifier):
    names = {i: f"class {i}" for i in range(12)}
    fields = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    model, processor = tiny_model(mobilevit_hf.MobileViTForImageClassification, **fields), classifier[1]
    images = list(make_images(25))
    samples = [Sample(str(i), png_bytes(image), label=i % 12) for i, image in enumerate(images)]
    result = evaluate_model(model, processor, samples, list(names.values()))
    classify = transformers.pipeline("image-classification", model=model, image_processor=processor)
    hits = [f"class {i % 12}" in {p["label"] for p in classify(image, top_k=5)} for i, image in enumerate(images)]
    assert result.metrics["top_5_accuracy"] == np.mean(hits)
    low, high = result.intervals["top_5_accuracy"]
    assert low < np.mean(hits) < high


def test_dataset_with_fewer_and_renamed_classes(classifier):
    """The classifier may still predict its other classes."""
    classify = transformers.pipeline("image-classification", model=classifier[0], image_processor=classifier[1])
    images = list(make_images(20))
    samples = [Sample(str(i), png_bytes(image), label=i % 2) for i, image in enumerate(images)]
    result = evaluate_model(*classifier, samples, ["OWL", "DOG"])
    predictions = [classify(image, top_k=1)[0]["label"] for image in images]
    hits = [prediction == ("owl", "dog")[i % 2] for i, prediction in enumerate(predictions)]
    assert result.metrics["accuracy"] == np.mean(hits)
    assert {"cat", "fish"} & set(predictions)


def test_model_is_left_unchanged(classifier):
    model, processor = copy.deepcopy(classifier[0]), classifier[1]
    samples = label_all(5, label=0)
    expected = evaluate_model(model, processor, samples, NAMES).metrics
    model.train()
    before = copy.deepcopy(model.state_dict())
    assert evaluate_model(model, processor, samples, NAMES).metrics == expected
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_stream_is_read_as_the_model_consumes_it(classifier, monkeypatch):
    num_read, forward = [], evaluator.forward
    num_read_at_forward = []
    image = png_bytes(next(make_images(1)))

    def stream():
        for i in range(60):
            num_read.append(i)
            yield Sample(str(i), image, label=0)

    def forward_and_count(*args):
        num_read_at_forward.append(len(num_read))
        return forward(*args)

    monkeypatch.setattr(evaluator, "forward", forward_and_count)
    result = evaluate_model(*classifier, stream(), NAMES, batch_size=4)
    assert result.num_images == 60
    assert num_read_at_forward[0] <= 16
    assert num_read_at_forward == sorted(num_read_at_forward)


def test_progress_counts_images(classifier):
    calls = []
    evaluate_model(
        *classifier, label_all(5, label=1), NAMES, batch_size=2, progress=lambda *state: calls.append(state)
    )
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_intervals_without_mistakes_have_a_width(classifier):
    """Of 10 images that are all correct, resamples do not vary; Wilson's lower end is 10 / (10 + 1.96²)."""
    classify = transformers.pipeline("image-classification", model=classifier[0], image_processor=classifier[1])
    images = list(make_images(10))
    labels = [NAMES.index(predictions[0]["label"]) for predictions in classify(images)]
    samples = [Sample(str(i), png_bytes(images[i]), label=label) for i, label in enumerate(labels)]
    expected = (pytest.approx(10 / (10 + 1.96**2), abs=1e-4), 1)
    result = evaluate_model(*classifier, samples, NAMES)
    assert (result.metrics["accuracy"], result.notes) == (1, [])
    assert result.intervals == {"accuracy": expected, "macro_f1": expected}
    assert evaluate_model(*classifier, samples, NAMES, resamples=0).intervals == {"accuracy": expected}
    name, count = NAMES[labels[0]], labels.count(labels[0])
    assert result.class_intervals[name]["recall"] == (pytest.approx(count / (count + 1.96**2), abs=1e-4), 1)


def test_weights_that_are_not_finite_are_rejected(classifier):
    model = copy.deepcopy(classifier[0])
    torch.nn.init.constant_(model.classifier.bias, math.nan)
    with pytest.raises(ValueError, match=r"got NaN in classifier\.bias, expected finite weights"):
        evaluate_model(model, classifier[1], label_all(1, label=0), NAMES)


def test_image_of_a_non_finite_output_is_named(overflowing_dir):
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(overflowing_dir)
    processor = AutoImageProcessor.from_pretrained(overflowing_dir)
    colors = ["black", "black", "white", "black"]
    samples = [Sample(color, png_bytes(Image.new("RGB", (64, 64), color)), label=0) for color in colors]
    with pytest.raises(ValueError, match=r"^white: got NaN in logits, expected finite outputs"):
        evaluate_model(model, processor, samples, NAMES)
    assert evaluate_model(model, processor, samples[:2], NAMES).num_images == 2


def test_empty_split_is_rejected(classifier):
    with pytest.raises(ValueError, match="no images"):
        evaluate_model(*classifier, [], NAMES)


def test_model_of_another_task_is_rejected(tiny_model, classifier):
    with pytest.raises(ValueError, match=r"MobileViTModel, expected"):
        evaluate_model(tiny_model(mobilevit_hf.MobileViTModel), classifier[1], [], NAMES)


def test_samples_of_another_task_are_rejected(classifier, detection):
    image = png_bytes(next(make_images(1)))
    with pytest.raises(ValueError, match=r"a\.jpg: got no label"):
        evaluate_model(*classifier, [Sample("a.jpg", image, objects=Objects.from_lists([], []))], NAMES)
    with pytest.raises(ValueError, match=r"a\.jpg: got no boxes"):
        evaluate_model(*detection[:2], [Sample("a.jpg", image, label=0)], NAMES)


def test_detector_with_inputs_of_different_sizes():
    """Images of different input sizes run one by one; without a `score_threshold` all scores enter the metrics."""
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[64, 64],
        patch_size=16, num_detection_tokens=12, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
    )  # fmt: skip
    model = YolosForObjectDetection(config).eval()
    processor = YolosImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    images = [image.resize(size) for image, size in zip(make_images(3), [(90, 60), (60, 90), (90, 60)], strict=True)]
    detect = transformers.pipeline("object-detection", model=model, image_processor=processor)
    detect._get_bounding_box = lambda box: box.tolist()  # exact boxes
    predictions = [
        {
            "boxes": [p["box"] for p in image],
            "labels": [["cat", "dog"].index(p["label"]) for p in image],
            "scores": [p["score"] for p in image],
        }
        for image in (detect(image, threshold=0.0) for image in images)
    ]
    references = [{name: image[name][:4] for name in ("boxes", "labels")} for image in predictions]
    samples = [
        Sample(str(i), png_bytes(image), objects=Objects.from_lists(*reference.values()))
        for i, (image, reference) in enumerate(zip(images, references, strict=True))
    ]
    result = evaluate_model(model.train(), processor, samples, ["cat", "dog"])
    assert model.training
    assert result.losses == {}
    assert result.recommended_threshold is None
    expected, _ = compute_pycocotools(predictions, references)
    assert [result.metrics["map"], result.metrics["map_50"]] == pytest.approx(expected[:2], abs=1e-4)


# --- several processes -----------------------------------------------------------------------------------------------


def run_in_threads(count, evaluate):
    """Return the results or errors of `evaluate` in threads that gather like processes, and what they gathered.

    Asserts that each thread gathers exactly once.
    """
    barrier, sent = threading.Barrier(count), {}

    def run(rank):
        def gather(items):
            assert rank not in sent
            sent[rank] = pickle.dumps(items)
            barrier.wait(60)
            return [item for other in range(count) for item in pickle.loads(sent[other])]

        try:
            return evaluate(rank=rank, num_replicas=count, gather=gather)
        except Exception as error:
            return error

    with warnings.catch_warnings(), ThreadPoolExecutor(count) as pool:  # warning filters belong to all threads
        results = list(pool.map(run, range(count)))
    assert sorted(sent) == list(range(count))
    return results, [shard for rank in range(count) for shard in pickle.loads(sent[rank])]


def comparable(result):
    """Return the fields of a result without the speed, with arrays as lists."""
    fields = {name: value for name, value in vars(result).items() if name != "images_per_second"}
    return json.loads(
        json.dumps(fields, default=lambda value: value.tolist() if hasattr(value, "tolist") else vars(value))
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("task", ["classification", "detection"])
def test_several_processes_return_the_result_of_one(request, task, stream):
    """Batches of one image: in other batches the network rounds differently."""
    model, processor, samples = request.getfixturevalue(task)
    settings = {"batch_size": 1, "max_bad": 0.2, "resamples": 50}
    expected = evaluate_model(model, processor, samples, NAMES, **settings)
    assert expected.mistakes
    assert expected.num_images == (15 if task == "classification" else 7)
    unreadable = ["3.png", "8.png"] if task == "classification" else []
    assert [problem.name for problem in expected.problems] == unreadable
    for count in (2, 3):
        calls = [[] for _ in range(count)]
        results, shards = run_in_threads(
            count,
            lambda rank, calls=calls, **processes: evaluate_model(
                model,
                processor,
                iter(samples) if stream else samples,
                NAMES,
                progress=lambda *state: calls[rank].append(state),
                rank=rank,
                **settings,
                **processes,
            ),
        )
        assert [comparable(result) for result in results] == [comparable(expected)] * count
        # All images by the time of the slowest process.
        speed = expected.num_images / max(shard.seconds for shard in shards)
        assert [result.images_per_second for result in results] == [speed] * count
        for rank, states in enumerate(calls):
            own = len(samples[rank::count])
            assert states == [(done, None if stream else own) for done in range(1, own + 1)]


def test_more_processes_than_images(detection):
    model, processor, samples = detection
    expected = evaluate_model(model, processor, samples[1:3], NAMES, batch_size=1, resamples=0)
    results, _ = run_in_threads(
        4, lambda **processes: evaluate_model(model, processor, samples[1:3], NAMES, resamples=0, **processes)
    )
    assert [comparable(result) for result in results] == [comparable(expected)] * 4


def test_too_many_unreadable_images_in_one_process_raise_in_all(classification):
    model, processor, samples = classification
    samples = [sample if i % 2 else dataclasses.replace(sample, image=b"") for i, sample in enumerate(samples)]
    results, _ = run_in_threads(
        2, lambda **processes: evaluate_model(model, processor, samples, NAMES, batch_size=2, **processes)
    )
    assert isinstance(results[0], ValueError)
    assert "0.png" in str(results[0])
    assert [repr(error) for error in results] == [repr(results[0])] * 2


class UnpicklableError(Exception):
    """An error that can't be unpickled."""

    def __init__(self, number, word):
        super().__init__(f"{number} {word}")


@pytest.mark.parametrize("rank", [0, 1])
def test_error_in_one_process_raises_in_all(classification, rank):
    """The failed process raises its own error, the others a built-in one, because they may not unpickle it."""
    model, processor, samples = classification
    broken = [sample if i != 2 + rank else dataclasses.replace(sample, label=None) for i, sample in enumerate(samples)]
    broken[3] = dataclasses.replace(broken[3], image=samples[0].image)
    results, _ = run_in_threads(
        2, lambda **processes: evaluate_model(model, processor, broken, NAMES, max_bad=0.5, **processes)
    )
    message = f"{2 + rank}.png: got no label"
    assert [(type(error), str(error)[: len(message)]) for error in results] == [(ValueError, message)] * 2

    def stream(fails):
        yield from samples[:2]
        if fails:
            raise UnpicklableError(7, "lives")

    results, _ = run_in_threads(
        2,
        lambda **processes: evaluate_model(model, processor, stream(processes["rank"] == rank), NAMES, **processes),
    )
    assert isinstance(results[rank], UnpicklableError)
    assert isinstance(results[1 - rank], RuntimeError)
    assert "UnpicklableError: 7 lives" in str(results[1 - rank])


@pytest.mark.parametrize(
    "processes", [{"rank": 1}, {"num_replicas": 2}, {"rank": -1, "num_replicas": 2, "gather": list}]
)
def test_inconsistent_processes_are_rejected(classification, processes):
    with pytest.raises(ValueError, match=r"rank=.*expected a rank from 0"):
        evaluate_model(*classification, NAMES, **processes)


@pytest.mark.slow
def test_two_processes_gather_by_accelerate(run_python, detector_dir, tmp_path):
    code = f"""
    import json, pickle
    from accelerate import PartialState
    from accelerate.utils import gather_object
    import mobilevit_hf
    from mobilevit_hf.evaluation import evaluate_model
    state = PartialState(cpu=True)
    detect = mobilevit_hf.pipeline("object-detection", {str(detector_dir)!r})
    samples = pickle.loads(open({str(tmp_path / "samples")!r}, "rb").read())
    processes = {{"rank": state.process_index, "num_replicas": state.num_processes, "gather": gather_object}}
    result = evaluate_model(
        detect.model, detect.image_processor, samples, {NAMES!r}, batch_size=1, resamples=20, **processes
    )
    print(json.dumps([state.num_processes, result.num_images, result.metrics, result.intervals]))
    state.destroy_process_group()
    """
    generator = np.random.default_rng(0)
    samples = []
    for i, image in enumerate(make_images(5)):
        corners = generator.uniform(0, 40, (3, 2))
        boxes = np.concatenate([corners, corners + 40], axis=1).tolist()
        samples.append(Sample(str(i), png_bytes(image), objects=Objects.from_lists(boxes, [0, 1, 2])))
    (tmp_path / "samples").write_bytes(pickle.dumps(samples))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "HF_HUB_OFFLINE": "1"}

    def run(rank):
        env = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "HF_HOME": str(tmp_path / "home")}
        return json.loads(run_python(code, env).splitlines()[-1])

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(run, range(2)))
    detect = mobilevit_hf.pipeline("object-detection", str(detector_dir))
    alone = evaluate_model(detect.model, detect.image_processor, samples, NAMES, batch_size=1, resamples=20)
    intervals = {name: list(ends) for name, ends in alone.intervals.items()}
    assert results == [[2, 5, alone.metrics, intervals]] * 2
