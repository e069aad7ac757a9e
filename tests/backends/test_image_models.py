"""Modules that take an image: equal to image processor, torch model and post-processing in sequence."""

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves
from torchvision.ops import batched_nms
from transformers import BitImageProcessor, MobileViTImageProcessor
from transformers.image_utils import PILImageResampling

import mobilevit_hf
from mobilevit_hf.backends.formats import FORMATS
from mobilevit_hf.backends.image_models import DUMMY_COLUMNS, MAX_CANDIDATES, Selection, build_module
from mobilevit_hf.backends.pytorch import load_model
from mobilevit_hf.backends.requests import ExportRequest
from mobilevit_hf.backends.tracing import trace
from mobilevit_hf.model_sources import load_image_processor

CLASSIFICATION, DETECTION, SEGMENTATION = "image-classification", "object-detection", "image-segmentation"
NORMALIZE = {"do_normalize": True, "image_mean": [0.48, 0.46, 0.41], "image_std": [0.23, 0.22, 0.27]}
INTERFACES = {
    (task, each) for format in FORMATS.values() for task, names in format.interfaces.items() for each in names
}


def make_request(task, folder, interface, processor=None):
    model, _ = load_model(task, str(folder))
    processor = processor or load_image_processor(folder, trust_remote_code=False)
    return ExportRequest(model, task, processor, torch.zeros(2, 3, 64, 64), interface=interface)


@pytest.fixture(scope="module")
def image():
    """(64, 64, 3) uint8 RGB of the models' size."""
    return np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def preprocess(processor, image):
    return processor(
        image, do_resize=False, do_center_crop=False, return_tensors="pt", input_data_format="channels_last"
    )


@pytest.mark.parametrize(
    "processor",
    [
        MobileViTImageProcessor(do_flip_channel_order=True),
        MobileViTImageProcessor(do_flip_channel_order=False),
        MobileViTImageProcessor(do_normalize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3),  # which it ignores
        BitImageProcessor(**NORMALIZE),
    ],
    ids=["bgr", "rgb", "normalize ignored", "normalized"],
)
def test_classifier_scores_equal_processor_and_model(model_dirs, image, processor):
    request = make_request(CLASSIFICATION, model_dirs[CLASSIFICATION], "image", processor)
    with torch.no_grad():
        (scores,) = build_module(request)(torch.from_numpy(image)[None])
        expected = request.model(**preprocess(processor, image)).logits.softmax(dim=-1)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-4)


def test_classifier_of_several_classes_per_image_is_an_error(model_dirs):
    request = make_request(CLASSIFICATION, model_dirs[CLASSIFICATION], "image")
    request.model.config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match=r"expected exactly one of at least two. Use the interface \"tensors\""):
        build_module(request)


@pytest.mark.parametrize("flip", [True, False])
def test_labels_equal_processor_model_and_post_processing(model_dirs, image, flip):
    processor = MobileViTImageProcessor(do_flip_channel_order=flip)
    request = make_request(SEGMENTATION, model_dirs[SEGMENTATION], "image", processor)
    with torch.no_grad():
        (labels,) = build_module(request)(torch.from_numpy(image)[None])
        outputs = request.model(**preprocess(processor, image))
    (expected,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(64, 64)])
    assert labels.dtype == torch.uint8
    assert len(expected.unique()) > 1
    assert (labels[0] == expected).float().mean() > 0.999  # rounding may break a tie differently


def test_labels_of_many_classes_are_int32(tiny_model):
    names = {i: f"class {i}" for i in range(257)}
    model = tiny_model(mobilevit_hf.MobileViTForSemanticSegmentation, id2label=names, label2id=None)
    with torch.no_grad():
        model.segmentation_head.classifier.convolution.bias[256] = 1e3
    request = ExportRequest(
        model, SEGMENTATION, MobileViTImageProcessor(), torch.zeros(1, 3, 64, 64), interface="image"
    )
    with torch.no_grad():
        (labels,) = build_module(request)(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    assert labels.dtype == torch.int32
    assert (labels == 256).all()


@pytest.mark.parametrize("size", [(90, 161), (40, 64)], ids=str)
def test_transformers_js_segmenter_gives_the_logits_of_processor_and_model(model_dirs, size):
    processor = MobileViTImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
    image = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    request = make_request(SEGMENTATION, model_dirs[SEGMENTATION], "transformers.js", processor)
    with torch.no_grad():
        (logits,) = build_module(request)(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
        expected = request.model(**processor(image, return_tensors="pt", input_data_format="channels_last")).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("fields", [{}, NORMALIZE], ids=["rescaled", "normalized"])
@pytest.mark.parametrize("interface", ["image", "transformers.js"])
def test_detections_equal_processor_model_and_post_processing(model_dirs, image, flip, fields, interface):
    processor = mobilevit_hf.MobileViTSSDLiteImageProcessor(
        size={"height": 64, "width": 64}, do_flip_channel_order=flip, score_threshold=0.05, max_detections=7, **fields
    )
    request = make_request(DETECTION, model_dirs[DETECTION], interface, processor)
    with torch.no_grad():
        outputs = request.model(**preprocess(processor, image))
        if interface == "image":
            boxes, scores, labels = (each[0] for each in build_module(request)(torch.from_numpy(image)[None]))
        else:
            pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
            boxes, scores, labels = read_as_transformers_js(*build_module(request)(pixels))
    (expected,) = processor.post_process_object_detection(outputs)
    assert len(expected["scores"]) == 7
    torch.testing.assert_close(scores, expected["scores"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(boxes, expected["boxes"], atol=1e-5, rtol=1e-4)
    assert labels.tolist() == expected["labels"].tolist()


def read_as_transformers_js(logits, pred_boxes):
    """Convert outputs to boxes, scores and labels as transformers.js's `post_process_object_detection` does."""
    probabilities, best = logits[0].softmax(dim=-1), logits[0].argmax(dim=-1)
    is_object = best != logits.shape[-1] - 1
    center, size = pred_boxes[0, is_object].split(2, dim=-1)
    boxes = torch.cat((center - size / 2, center + size / 2), dim=-1)
    return boxes, probabilities[is_object].amax(dim=-1), best[is_object]


class FixedSelection(torch.nn.Module):
    """Selects three rows: two detections, and none."""

    def forward(self, boxes, scores):
        return boxes[:, :3], torch.tensor([[0.02, 0.005, 0.0]]), torch.tensor([[1, 2, 0]], dtype=torch.int32)


def test_transformers_js_reads_no_detection_without_a_name(model_dirs, image):
    """A score below the probability of a dummy column is no detection."""
    module = build_module(make_request(DETECTION, model_dirs[DETECTION], "transformers.js"))
    module.select = FixedSelection()
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    _, scores, labels = read_as_transformers_js(*module(pixels))
    torch.testing.assert_close(scores, torch.tensor([0.02]))
    assert labels.tolist() == [1]


@pytest.mark.parametrize("resample", [PILImageResampling.BILINEAR, PILImageResampling.BICUBIC])
@pytest.mark.parametrize("size", [(90, 161), (40, 64), (64, 64)], ids=str)
def test_transformers_js_detector_resizes_as_the_image_processor(model_dirs, size, resample):
    processor = mobilevit_hf.MobileViTSSDLiteImageProcessor(size={"height": 64, "width": 64}, resample=resample)
    image = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    request = make_request(DETECTION, model_dirs[DETECTION], "transformers.js", processor)
    module, received = build_module(request), []
    module.model.register_forward_pre_hook(lambda module, inputs: received.append(inputs[0]))
    with torch.no_grad():
        module(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    (expected,) = processor(image, return_tensors="pt", input_data_format="channels_last").values()
    torch.testing.assert_close(received[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(90, 150), (151, 80), (72, 72), (73, 98), (64, 200), (300, 299)])
@pytest.mark.parametrize("resample", [2, 3], ids=["bilinear", "bicubic"])
def test_classifier_for_transformers_js_resizes_and_crops_as_the_processor(model_dirs, size, resample):
    processor = MobileViTImageProcessor(
        size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}, resample=resample
    )
    request = make_request(CLASSIFICATION, model_dirs[CLASSIFICATION], "transformers.js", processor)
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        (logits,) = build_module(request)(pixels)
        expected = request.model(**processor(photo, return_tensors="pt", input_data_format="channels_last")).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_classifier_for_transformers_js_takes_a_crop_as_it_is(model_dirs, image):
    request = make_request(CLASSIFICATION, model_dirs[CLASSIFICATION], "transformers.js")
    with torch.no_grad():
        (logits,) = build_module(request)(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
        expected = request.model(**preprocess(request.processor, image)).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def random_candidates(number, num_labels, seed):
    """Return boxes (1, A, 4) that often overlap, some of them beyond the image, and scores (1, A, K)."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(number // 4, 2, generator=generator).repeat(4, 1)
    corners = centers + 0.1 * torch.rand(len(centers), 2, generator=generator)
    scores = torch.rand(1, len(centers), num_labels, generator=generator)
    return torch.cat((corners - 0.2, corners + 0.1), dim=-1)[None], scores / num_labels


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("iou_threshold", [0.3, 0.5, 0.8])
def test_selection_equals_torchvisions_nms(seed, iou_threshold):
    processor = mobilevit_hf.MobileViTSSDLiteImageProcessor(
        score_threshold=0.1, nms_iou_threshold=iou_threshold, max_detections=50
    )
    boxes, scores = random_candidates(120, 3, seed)
    selected_boxes, selected_scores, selected_labels = (each[0] for each in Selection(processor)(boxes, scores))
    anchor, label = (scores[0] > 0.1).nonzero().unbind(dim=1)
    kept = batched_nms(boxes[0, anchor].double(), scores[0, anchor, label].double(), label, iou_threshold)[:50]
    number = len(kept)
    assert number > 0
    assert selected_labels.dtype == torch.int32
    torch.testing.assert_close(selected_scores[:number], scores[0, anchor, label][kept])
    torch.testing.assert_close(selected_boxes[:number], boxes[0, anchor][kept].clamp(0, 1))
    assert selected_labels[:number].tolist() == label[kept].tolist()
    for rest in (selected_boxes[number:], selected_scores[number:], selected_labels[number:]):
        assert not rest.any()


def test_selection_of_many_candidates_keeps_the_highest_scores():
    processor = mobilevit_hf.MobileViTSSDLiteImageProcessor(nms_iou_threshold=1.0, score_threshold=0.0)
    boxes, scores = random_candidates(4 * MAX_CANDIDATES, 2, seed=0)
    selected = Selection(processor)(boxes, scores)[1][0]
    assert len(selected) == processor.max_detections
    torch.testing.assert_close(selected, scores.flatten().topk(len(selected)).values)


def test_no_detection_is_the_background_for_transformers_js(model_dirs):
    processor = mobilevit_hf.MobileViTSSDLiteImageProcessor(size={"height": 64, "width": 64}, score_threshold=1.0)
    request = make_request(DETECTION, model_dirs[DETECTION], "transformers.js", processor)
    with torch.no_grad():
        logits, boxes = build_module(request)(torch.zeros(1, 3, 64, 64))
    assert logits.shape[-1] == len(request.labels) + DUMMY_COLUMNS + 1
    assert (logits.argmax(dim=-1) == logits.shape[-1] - 1).all()
    assert not boxes.any()


@pytest.mark.slow
@pytest.mark.parametrize(("task", "interface"), sorted(INTERFACES))
def test_no_tensor_of_an_exported_graph_has_more_than_five_dimensions(model_dirs, task, interface):
    """LiteRT, Core ML and NCNN refuse more."""
    program = trace(make_request(task, model_dirs[task], interface), dynamic_shapes=interface == "tensors")
    values = [leaf for node in program.graph.nodes for leaf in tree_leaves(node.meta.get("val"))]
    dimensions = [value.dim() for value in values if isinstance(value, torch.Tensor)]
    assert len(dimensions) > 100
    assert max(dimensions) <= 5
