"""huggingface_hub's client gets the predictions of the pipeline."""

import itertools
from io import BytesIO

import pytest
from dataset_files import orientation_exif
from huggingface_hub import InferenceClient
from huggingface_hub.errors import BadRequestError
from PIL import Image

import mobilevit_hf

TASKS = ("image-classification", "object-detection", "image-segmentation")


@pytest.fixture(scope="module")
def pipelines(checkpoints, detector_dir, segmenter_dir):
    folders = (checkpoints["image-classification"], detector_dir, segmenter_dir)
    return {
        task: mobilevit_hf.pipeline(task, folder, device="cpu") for task, folder in zip(TASKS, folders, strict=True)
    }


@pytest.fixture(scope="module")
def urls(run_app, pipelines):
    return {task: run_app(lambda task=task: pipelines[task]).url for task in TASKS}


@pytest.fixture(scope="module")
def files(image, tmp_path_factory):
    """Image files whose decoding differs between libraries: rotated by EXIF, transparent, gray."""
    folder = tmp_path_factory.mktemp("files")
    image.save(folder / "rotated.jpg", exif=orientation_exif(6))
    transparent = image.convert("RGBA")
    transparent.putalpha(100)
    transparent.save(folder / "transparent.png")
    image.convert("L").save(folder / "gray.webp")
    return sorted(folder.iterdir())


def as_dicts(elements):
    return [{"label": element.label, "score": pytest.approx(element.score, abs=1e-6)} for element in elements]


def test_classification_has_the_predictions_of_the_pipeline(urls, pipelines, files):
    client, pipe = InferenceClient(urls["image-classification"]), pipelines["image-classification"]
    for file in files:
        assert as_dicts(client.image_classification(file)) == pipe(str(file))
        assert as_dicts(client.image_classification(file.read_bytes())) == pipe(str(file))
        for top_k, function in ((1, None), (None, "sigmoid"), (2, "softmax"), (100, "none")):
            given = {"top_k": top_k, "function_to_apply": function}
            predictions = client.image_classification(str(file), **given)
            assert as_dicts(predictions) == pipe(str(file), **{k: v for k, v in given.items() if v})


def test_url_of_an_image_is_downloaded_by_the_client(urls, pipelines, image, served_file):
    client, expected = InferenceClient(urls["image-classification"]), pipelines["image-classification"](image)
    file = BytesIO()
    image.save(file, "PNG")
    url = served_file("image.png", file.getvalue())
    assert as_dicts(client.image_classification(url)) == expected
    assert as_dicts(client.image_classification(url, top_k=2)) == expected[:2]


def test_base_url_and_paths_of_models_are_accepted(urls, pipelines, files):
    expected = pipelines["image-classification"](str(files[0]))
    url = urls["image-classification"]
    for client in (
        InferenceClient(base_url=url),
        InferenceClient(base_url=f"{url}/"),
        InferenceClient(f"{url}/models/apple/mobilevit-small"),
        InferenceClient(f"{url}/models/apple/mobilevit-small/pipeline/image-classification"),
        InferenceClient(f"{url}/pipeline/image-classification"),
    ):
        assert as_dicts(client.image_classification(files[0])) == expected


def as_boxes(elements):
    names = ("xmin", "ymin", "xmax", "ymax")
    return [
        detection | {"box": {name: getattr(element.box, name) for name in names}}
        for detection, element in zip(as_dicts(elements), elements, strict=True)
    ]


def test_detection_has_the_predictions_of_the_pipeline(urls, pipelines, files):
    client, pipe = InferenceClient(urls["object-detection"]), pipelines["object-detection"]
    counts = set()
    for file, threshold in itertools.product(files, (0.0, 0.3, 1.0)):
        detections = client.object_detection(file, threshold=threshold)
        assert as_boxes(detections) == pipe(str(file), threshold=threshold)
        counts.add(len(detections))
    assert len(counts) > 1


def test_default_threshold_is_the_one_the_model_recommends(run_app, pipelines, files, detector_dir):
    pipe = mobilevit_hf.pipeline("object-detection", detector_dir, device="cpu")
    scores = sorted(detection["score"] for detection in pipe(str(files[0]), threshold=0.0))
    threshold = (scores[len(scores) // 2 - 1] + scores[len(scores) // 2]) / 2
    pipe._postprocess_params["threshold"] = threshold
    client = InferenceClient(run_app(lambda: pipe).url)
    detections = client.object_detection(files[0])
    assert 0 < len(detections) < len(scores)
    assert as_boxes(detections) == pipelines["object-detection"](str(files[0]), threshold=threshold)


def test_segmentation_has_the_masks_of_the_pipeline(urls, pipelines, files):
    client, pipe = InferenceClient(urls["image-segmentation"]), pipelines["image-segmentation"]
    for file, subtask in itertools.product(files, (None, "semantic")):
        expected = pipe(str(file))
        segments = client.image_segmentation(file, subtask=subtask)
        assert len(segments) > 1
        assert [segment.label for segment in segments] == [segment["label"] for segment in expected]
        assert [segment.score for segment in segments] == [segment["score"] for segment in expected]
        for segment, other in zip(segments, expected, strict=True):
            assert segment.mask.mode == "L"
            assert segment.mask.tobytes() == other["mask"].tobytes()
            assert segment.mask.size == other["mask"].size == Image.open(file).size[:: -1 if "rot" in file.name else 1]


def test_concurrent_requests_have_their_own_parameters(urls, pipelines, files, threads):
    pipe = pipelines["image-classification"]
    expected = {file: pipe(str(file)) for file in files}

    def predict(number):
        file, top_k = files[number % len(files)], number % 4 + 1
        client = InferenceClient(urls["image-classification"])
        return as_dicts(client.image_classification(file, top_k=top_k)) == expected[file][:top_k]

    assert all(threads.map(predict, range(60)))


def test_unreadable_image_is_a_bad_request_with_the_reason(urls):
    client = InferenceClient(urls["image-classification"])
    with pytest.raises(BadRequestError, match="image: can't be read: not an image in a format Pillow reads"):
        client.image_classification(b"text")
