"""The library under mobilevit evaluate: its figures, what it remembers of the images, and several processes."""

import dataclasses
import json
import os
import pickle
import re
import shutil
import socket
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from metric_cases import HANDMADE, assert_matches_pycocotools, detections, objects, random_images
from transformers import AutoImageProcessor
from dataset_files import png_bytes, make_images

import mobilevit_hf
from mobilevit_hf.cli.evaluate import _pick_split
from mobilevit_hf.data.types import Dataset, Objects, Sample
from mobilevit_hf.evaluation import evaluate_model
from mobilevit_hf.evaluation.classification import Classification
from mobilevit_hf.evaluation.detection import Detection
from mobilevit_hf.evaluation.inference import Prepared
from mobilevit_hf.metrics import CocoMap, TopKAccuracy

NAMES = ["cat", "dog", "fish", "owl"]


def measure_in_parts(make, answers, samples, parts):
    """A measure that knows what `parts` others found out, each on every so manieth image, in no special order."""
    known = []
    for part in range(parts):
        measure = make()
        for place in np.random.default_rng(part).permutation(np.arange(part, len(samples), parts)).tolist():
            measure.add(answers[place : place + 1], [Prepared(place, samples[place], None, (1, 1))])
        known.append(pickle.dumps(measure.known))
    measure = make()
    measure.join(pickle.loads(part) for part in reversed(known))
    return measure, known


# --- classification --------------------------------------------------------------------------------------------------


def random_answers(count, num_classes, seed=0, decimals=1):
    """Logits, with many ties if they have no decimals, and samples with labels that they often name."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (count, num_classes)).round(decimals).astype(np.float32)
    labels = np.where(generator.random(count) < 0.6, logits.argmax(axis=1), generator.integers(0, num_classes, count))
    return logits, [Sample(f"{i}.jpg", None, label=label) for i, label in enumerate(labels.tolist())]


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("num_classes", [4, 5, 12])
def test_figures_of_a_classifier_are_those_of_the_metric(num_classes, parts):
    logits, samples = random_answers(150, num_classes, decimals=0)
    names = {i: f"class {i}" for i in range(num_classes)} | {1: "class 0"}  # two of one name
    measure, _ = measure_in_parts(lambda: Classification(names, range(num_classes)), logits, samples, parts)
    metric = TopKAccuracy(keep_in_memory=True)
    metric.add_batch(predictions=logits, references=[sample.label for sample in samples])
    expected = metric.compute(k=(1, 5) if num_classes > 5 else 1, id2label=names)
    assert measure.compute() == expected
    assert list(measure.compute()) == list(expected)


@pytest.mark.parametrize("parts", [1, 2])
def test_confusion_and_mistakes_of_a_classifier(parts):
    """The model's classes are the dataset's in another order, and one more."""
    logits, samples = random_answers(120, 5, seed=1)
    samples = [dataclasses.replace(sample, label=sample.label % 4) for sample in samples]
    names, targets = dict(enumerate("abcde")), [3, 0, 4, 1]
    measure, _ = measure_in_parts(lambda: Classification(names, targets), logits, samples, parts)
    confusion, wrong = np.zeros((5, 5), dtype=np.int64), []
    for place, (row, sample) in enumerate(zip(logits.tolist(), samples, strict=True)):
        right, named = targets[sample.label], row.index(max(row))
        confusion[right, named] += 1
        if right != named:
            chance = torch.tensor(row).softmax(dim=0)[named].item()
            wrong.append((-chance, place, sample.name, names[right], names[named]))
    assert measure.confusion().dtype == np.int64
    np.testing.assert_array_equal(measure.confusion(), confusion)
    assert len(wrong) > 24
    assert len(measure.mistakes()) == 24
    for found, (chance, *expected) in zip(measure.mistakes(), sorted(wrong), strict=False):
        assert [found.place, found.name, found.right, found.named] == expected
        assert found.score == pytest.approx(-chance, rel=1e-5)


def test_what_is_known_of_a_classifier_does_not_grow():
    sizes = []
    for times in (2, 20):
        logits, samples = random_answers(100, 12)
        _, (known,) = measure_in_parts(
            lambda: Classification(dict(enumerate("abcdefghijkl")), range(12)),
            np.tile(logits, (times, 1)),
            samples * times,
            1,
        )
        sizes.append(len(known))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


def test_logits_have_to_be_numbers():
    measure = Classification(dict(enumerate(NAMES)), range(4))
    with pytest.raises(ValueError, match=r"logits .* finite"):
        measure.add(np.array([[0, 1, np.nan, 2]]), [Prepared(0, Sample("a", None, label=1), None, (1, 1))])


# --- detection -------------------------------------------------------------------------------------------------------


def as_tensors(predictions, references):
    """Images as the metric takes them → as `Detection` does, and the references in the precision of `Objects`."""
    found = [{name: torch.tensor(np.array(value)) for name, value in image.items()} for image in predictions]
    found = [image | {"boxes": image["boxes"].reshape(-1, 4)} for image in found]
    there = [
        Objects.from_lists(
            *(np.asarray(r[k]).tolist() if k in r else None for k in ("boxes", "labels", "iscrowd", "area"))
        )
        for r in references
    ]
    exact = [{"boxes": o.boxes, "labels": o.labels, "iscrowd": o.iscrowd, "area": o.areas} for o in there]
    samples = [Sample(str(i), None, objects=o) for i, o in enumerate(there)]
    return found, samples, exact


def make_detection():
    return Detection(None, {i: i for i in range(9)}, list(range(9)))


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(("seed", "most_detections"), [(0, 30), (1, 60), (2, 700)])
def test_figures_of_a_detector_are_those_of_the_metric(seed, most_detections, parts):
    found, samples, references = as_tensors(*random_images(seed, 14, most_detections))
    measure, _ = measure_in_parts(make_detection, found, samples, parts)
    result = measure.compute()
    assert_matches_pycocotools(result, found, references)
    metric = CocoMap(keep_in_memory=True)
    metric.add_batch(predictions=found, references=references)
    expected = metric.compute()
    assert result.pop("per_class") == pytest.approx(expected.pop("per_class"), abs=1e-9)
    assert result == pytest.approx(expected, abs=1e-9)
    assert len(set(result.values())) == 12


BOUNDS = [[0, 0, 32, 32], [100, 0, 196, 96]]
SPECIAL = {case: images for case, images in HANDMADE.items() if images[0]} | {
    "areas at a bound": ([detections(BOUNDS)], [objects(BOUNDS)]),
    "wrong ones of areas at a bound": (
        [detections([*BOUNDS, [0, 0, 10, 10]], [0.9, 0.8, 0.7])],
        [objects([[0, 0, 10, 10], [300, 0, 350, 50], [400, 0, 600, 90]])],
    ),
}


@pytest.mark.parametrize("case", SPECIAL)
def test_figures_of_special_images(case):
    found, samples, references = as_tensors(*SPECIAL[case])
    measure, _ = measure_in_parts(make_detection, found, samples, 1)
    assert_matches_pycocotools(measure.compute(), found, references)


def test_what_is_known_of_a_detector_is_less_than_its_boxes():
    predictions, references = random_images(0, 3, 700)
    found, samples, _ = as_tensors(predictions, references)
    found = [image | {name: image[name].float() for name in ("boxes", "scores")} for image in found]
    _, (known,) = measure_in_parts(make_detection, found, samples, 1)
    boxes = sum(len(image["boxes"]) for image in found)
    assert boxes > 500
    assert len(known) < 20 * boxes + 3000 * len(found)


@pytest.mark.parametrize("box", [[5, 5, 3, 9], [0, 0, float("inf"), 4]])
@pytest.mark.parametrize("side", ["found", "there"])
def test_boxes_have_to_be_corners(box, side):
    boxes = {"found": [[0, 0, 2, 2]], "there": [[0, 0, 2, 2]]} | {side: [box]}
    answer = {"boxes": torch.tensor(boxes["found"]).float(), "scores": torch.ones(1), "labels": torch.zeros(1)}
    sample = Sample("a.jpg", None, objects=Objects.from_lists(boxes["there"], [0]))
    with pytest.raises(ValueError, match=r"a\.jpg: got boxes .*torchvision"):
        make_detection().add([answer], [Prepared(0, sample, None, (9, 9))])


# --- several processes -----------------------------------------------------------------------------------------------


def in_processes(count, measure):
    """What `measure` returns or raises in processes, here threads, that can gather; each has to do so once."""
    barrier, sent = threading.Barrier(count), {}

    def run(rank):
        def gather(items):
            assert rank not in sent
            sent[rank] = pickle.dumps(items)
            barrier.wait(60)
            return [item for other in range(count) for item in pickle.loads(sent[other])]

        try:
            return measure(rank=rank, num_replicas=count, gather=gather)
        except Exception as error:
            return error

    with warnings.catch_warnings(), ThreadPoolExecutor(count) as pool:  # their filters are those of all threads
        results = list(pool.map(run, range(count)))
    assert sorted(sent) == list(range(count))
    return results, [part for rank in range(count) for part in pickle.loads(sent[rank])]


def what_is_equal(result):
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    del fields["images_per_second"]
    return fields | {"confusion": None if result.confusion is None else result.confusion.tolist()}


@pytest.fixture(scope="module")
def classified(checkpoints):
    """A classifier, its processor and images with labels, two of them unreadable."""
    folder = checkpoints["image-classification"]
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(folder)
    files = [png_bytes(image) for image in make_images(17)]
    samples = [Sample(f"{i}.png", file, label=i * i % 4) for i, file in enumerate(files)]
    for i in (3, 8):
        samples[i] = dataclasses.replace(samples[i], image=b"no image")
    return model, AutoImageProcessor.from_pretrained(folder), samples


@pytest.fixture(scope="module")
def detected(detector_dir):
    """A detector, its processor and images with some of the boxes that it finds, moved a little; of the first and
    the last with none."""
    detect = mobilevit_hf.pipeline("object-detection", str(detector_dir))
    generator = np.random.default_rng(0)
    samples = []
    for i, image in enumerate(make_images(7, size=(200, 150))):
        found = detect(image, threshold=0.3)[: 0 if i in (0, 6) else 30 : 1 + i % 3]
        boxes = [[side + generator.normal(0, 3) for side in answer["box"].values()] for answer in found]
        boxes = [[x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)] for x1, y1, x2, y2 in boxes]
        labels = [NAMES.index(answer["label"]) for answer in found]
        crowd = (generator.random(len(found)) < 0.1).astype(int).tolist()
        samples.append(Sample(f"{i}.png", png_bytes(image), objects=Objects.from_lists(boxes, labels, crowd)))
    return detect.model, detect.image_processor, samples


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["classified", "detected"])
def test_several_processes_find_what_one_finds(request, kind, stream):
    """Images run one by one: in other batches the network rounds otherwise."""
    model, processor, samples = request.getfixturevalue(kind)
    settings = {"batch_size": 1, "max_bad": 0.2, "resamples": 50}
    expected = evaluate_model(model, processor, samples, NAMES, **settings)
    assert expected.mistakes
    assert expected.num_images == (15 if kind == "classified" else 7)
    assert [problem.name for problem in expected.problems] == (["3.png", "8.png"] if kind == "classified" else [])
    for count in (2, 3):
        told = [[] for _ in range(count)]
        results, parts = in_processes(
            count,
            lambda rank, told=told, **processes: evaluate_model(
                model,
                processor,
                iter(samples) if stream else samples,
                NAMES,
                progress=lambda *state: told[rank].append(state),
                rank=rank,
                **settings,
                **processes,
            ),
        )
        assert [what_is_equal(result) for result in results] == [what_is_equal(expected)] * count
        # All images by the time of the slowest process.
        speed = expected.num_images / max(part.seconds for part in parts)
        assert [result.images_per_second for result in results] == [speed] * count
        for rank, states in enumerate(told):
            own = len(samples[rank::count])
            assert states == [(done, None if stream else own) for done in range(1, own + 1)]


def test_more_processes_than_images(detected):
    model, processor, samples = detected
    expected = evaluate_model(model, processor, samples[1:3], NAMES, batch_size=1, resamples=0)
    results, _ = in_processes(
        4, lambda **processes: evaluate_model(model, processor, samples[1:3], NAMES, resamples=0, **processes)
    )
    assert [what_is_equal(result) for result in results] == [what_is_equal(expected)] * 4


def test_too_many_bad_images_of_one_process_stop_all(classified):
    model, processor, samples = classified
    samples = [sample if i % 2 else dataclasses.replace(sample, image=b"") for i, sample in enumerate(samples)]
    results, _ = in_processes(
        2, lambda **processes: evaluate_model(model, processor, samples, NAMES, batch_size=2, **processes)
    )
    assert isinstance(results[0], ValueError)
    assert "0.png" in str(results[0])
    assert [repr(error) for error in results] == [repr(results[0])] * 2


class OddError(Exception):
    """An error that can't be unpickled."""

    def __init__(self, number, word):
        super().__init__(f"{number} {word}")


@pytest.mark.parametrize("rank", [0, 1])
def test_if_one_process_fails_all_raise(classified, rank):
    """The one that fails its own error, the others, which could not read its class, one of Python's."""
    model, processor, samples = classified
    wrong = [sample if i != 2 + rank else dataclasses.replace(sample, label=None) for i, sample in enumerate(samples)]
    wrong[3] = dataclasses.replace(wrong[3], image=samples[0].image)
    results, _ = in_processes(
        2, lambda **processes: evaluate_model(model, processor, wrong, NAMES, max_bad=0.5, **processes)
    )
    assert [(type(error), str(error)[:18]) for error in results] == [(ValueError, f"{2 + rank}.png has no label")] * 2

    def stream(mine):
        yield from samples[:2]
        if mine:
            raise OddError(7, "lives")

    results, _ = in_processes(
        2,
        lambda **processes: evaluate_model(model, processor, stream(processes["rank"] == rank), NAMES, **processes),
    )
    assert isinstance(results[rank], OddError)
    assert isinstance(results[1 - rank], RuntimeError)
    assert "OddError: 7 lives" in str(results[1 - rank])


@pytest.mark.parametrize(
    "processes", [{"rank": 1}, {"num_replicas": 2}, {"rank": -1, "num_replicas": 2, "gather": list}]
)
def test_processes_that_do_not_fit(classified, processes):
    with pytest.raises(ValueError, match=r"rank=.*expected a rank from 0"):
        evaluate_model(*classified, NAMES, **processes)


@pytest.mark.slow
def test_processes_of_accelerate(run_python, detector_dir, tmp_path):
    """Two true processes that gather by Accelerate."""
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


# --- nothing to find -------------------------------------------------------------------------------------------------


def test_draws_without_anything_to_find_say_nothing():
    predictions = [detections([[0, 0, 10, 10]], [0.9]), detections([], [])]
    found, samples, _ = as_tensors(predictions, [objects([[0, 0, 10, 10]]), objects([])])
    measure, _ = measure_in_parts(make_detection, found, samples, 1)
    with warnings.catch_warnings(action="error"):
        intervals = measure.intervals(measure.compute(), 200, np.random.default_rng(0))
    assert intervals == {"map": (1, 1), "map_50": (1, 1)}


def test_nothing_found_where_nothing_is(mobilevit, detector_dir, tmp_path):
    model, data = tmp_path / "model", tmp_path / "data"
    shutil.copytree(detector_dir, model)
    AutoImageProcessor.from_pretrained(detector_dir, score_threshold=1.0).save_pretrained(model)
    (data / "annotations").mkdir(parents=True)
    next(make_images(1)).save(data / "0.png")
    content = {"images": [{"id": 0, "file_name": "0.png"}], "annotations": []}
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
    (data / "annotations/instances_test.json").write_text(json.dumps(content))
    code, out, _ = mobilevit("evaluate", model, data)
    assert code == 0
    assert re.search(r"mAP +-", out)


def test_all_splits_together_are_read_one_sample_at_a_time():
    class Counting(Sequence):
        def __init__(self, names):
            self.names = names

        def __len__(self):
            return len(self.names)

        def __getitem__(self, place):
            made.append(self.names[place])
            return Sample(self.names[place], None, label=0)

    made = []
    splits = {"train": Counting("abc"), "test": Counting("de")}
    _, samples = _pick_split(Dataset("image-classification", ("cat",), splits, "imagefolder"), "all", "data")
    assert (len(samples), made) == (5, [])
    assert "".join(sample.name for sample in samples) == "abcde"
    assert [samples[place].name for place in (-1, 2, 3)] == ["e", "c", "d"]
