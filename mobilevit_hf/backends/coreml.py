"""Core ML packages, for apps on Apple devices; there is no runtime in Python."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import __version__
from ..model_sources import recommended_threshold
from ..tasks import TASKS
from .image_models import Candidates, ImageClassifier, ImageSegmenter, top_candidates
from .requests import ExportRequest
from .tracing import trace

MINIMUM_VERSION = "iOS16"  # also macOS 13
CANDIDATES = ("candidate_confidence", "candidate_coordinates")  # from the model to NMS
DETECTIONS = ("confidence", "coordinates")  # from NMS; Vision requires these names
THRESHOLDS = ("iouThreshold", "confidenceThreshold")  # optional inputs of NMS
DESCRIPTIONS = {
    "image": "RGB image of {height} x {width} pixels",
    "classLabel": "Class with the highest probability",
    "classLabel_probs": "Probability of each class",
    "confidence": "Score of each detection (N, number of classes), 0 for all classes but its own",
    "coordinates": "Boxes (N, 4): center x, center y, width and height as fractions of the image",
    "iouThreshold": "IoU with a higher-scoring box of the same class above which a box is dropped. Default: {iou}",
    "labels": "Class index of each pixel (1, height, width)",
    "confidenceThreshold": "Minimum score. Default: {confidence}, the recommended threshold of this model",
}


def write_coreml(request: ExportRequest, path: Path) -> None:
    """Write a model as a Core ML package; see `export.export_file`.

    With the interface "image", a classifier is a Core ML classifier (`classLabel`, `classLabel_probs`), and a detector
    a pipeline of the model and Core ML's NMS (`confidence`, `coordinates`), so that Vision returns observations with
    labels. A segmentation model returns an array, `labels`, which Vision returns as a feature value. They take an RGB
    image of the size of `request.pixels`.
    """
    import coremltools as ct

    if request.interface == "tensors":
        inputs = [ct.TensorType(name=request.input_name, shape=request.pixels[:1].shape)]
        program = trace(replace(request, dtype="float32")).run_decompositions({})
        package = _convert(program, request, inputs, request.output_names)
    elif request.task == "image-classification":
        config = ct.ClassifierConfig(unique_labels(request.labels))
        package = _convert_image(CoreMLClassifier, request, ("scores",), config)
    elif request.task == "image-segmentation":
        package = _convert_image(CoreMLSegmenter, request, request.output_names)
    else:
        model = _convert_image(CoreMLDetector, request, CANDIDATES)
        package = ct.utils.make_pipeline(model, ct.models.MLModel(_make_nms(request, model.get_spec())))
    _describe(package, request)
    package.save(str(path))


class CoreMLClassifier(ImageClassifier):
    """Classifier for Core ML's images: (1, 3, H, W) float32 RGB in 0..255 → scores (1, K)."""

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Return the scores."""
        return super().forward(image.permute(0, 2, 3, 1))


class CoreMLSegmenter(ImageSegmenter):
    """Segmentation model for Core ML's images: (1, 3, H, W) float32 RGB in 0..255 → labels (1, H, W) int32."""

    def __init__(self, request: ExportRequest) -> None:
        super().__init__(request)
        self.dtype = torch.int32  # Core ML has no arrays of uint8

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Return the labels."""
        return super().forward(image.permute(0, 2, 3, 1))


class CoreMLDetector(Candidates):
    """Detector for Core ML's images and NMS: (1, 3, H, W) float32 RGB in 0..255 → (M, K), (M, 4).

    Each of the M rows is a candidate of one class, a score and zeros: Core ML's NMS takes a row for its highest class
    only, and Vision adds the scores of a row. Boxes are (cx, cy, w, h) as fractions of the image, not clipped, as the
    image processor clips them after NMS.
    """

    def __init__(self, request: ExportRequest) -> None:
        super().__init__(request)
        self.register_buffer("classes", torch.arange(len(request.labels)), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and boxes."""
        logits, boxes = self.model(self.preprocessing(image.permute(0, 2, 3, 1)))
        box, score, label = top_candidates(boxes, logits.softmax(dim=-1)[..., 1:])
        is_label: Any = label[:, None] == self.classes
        return score[:, None] * is_label.float(), box


def _convert_image(
    make_module: type[nn.Module], request: ExportRequest, outputs: tuple[str, ...], classifier_config: Any = None
) -> Any:
    """Convert the module of a request that takes an image."""
    import coremltools as ct

    shape = (1, 3, *request.size)
    module = make_module(replace(request, dtype="float32")).eval()
    with torch.no_grad():
        program = torch.export.export(module, (torch.zeros(shape),), strict=False).run_decompositions({})
    inputs = [ct.ImageType(name=request.input_name, shape=shape, color_layout=ct.colorlayout.RGB)]
    return _convert(program, request, inputs, outputs, classifier_config)


def _convert(
    program: torch.export.ExportedProgram,
    request: ExportRequest,
    inputs: list[Any],
    outputs: tuple[str, ...],
    classifier_config: Any = None,
) -> Any:
    import coremltools as ct

    return ct.convert(
        program,
        inputs=inputs,
        outputs=[ct.TensorType(name=name, dtype=np.int32 if name == "labels" else np.float32) for name in outputs],
        classifier_config=classifier_config,
        compute_precision={"float32": ct.precision.FLOAT32, "float16": ct.precision.FLOAT16}[request.dtype],
        minimum_deployment_target=ct.target[MINIMUM_VERSION],
    )


def _make_nms(request: ExportRequest, model: Any) -> Any:
    """Return Core ML's NMS per class for the candidates of a model, both as `Model` messages."""
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model(specificationVersion=model.specificationVersion)
    for candidates, name in zip(model.description.output, DETECTIONS, strict=True):
        spec.description.input.add().CopyFrom(candidates)
        array = spec.description.output.add(name=name).type.multiArrayType
        array.dataType = candidates.type.multiArrayType.dataType
        columns = candidates.type.multiArrayType.shape[1]
        for lower, upper in ((0, -1), (columns, columns)):  # -1: any number of rows
            array.shapeRange.sizeRanges.add(lowerBound=lower, upperBound=upper)
    for name in THRESHOLDS:
        type = spec.description.input.add(name=name).type
        type.doubleType.SetInParent()
        type.isOptional = True
    nms = spec.nonMaximumSuppression
    nms.pickTop.perClass = True
    nms.iouThreshold, nms.confidenceThreshold = _thresholds(request)
    nms.confidenceInputFeatureName, nms.coordinatesInputFeatureName = CANDIDATES
    nms.confidenceOutputFeatureName, nms.coordinatesOutputFeatureName = DETECTIONS
    nms.iouThresholdInputFeatureName, nms.confidenceThresholdInputFeatureName = THRESHOLDS
    nms.stringClassLabels.vector.extend(unique_labels(request.labels))
    return spec


def _thresholds(request: ExportRequest) -> tuple[float, float]:
    """Return the thresholds of IoU and score."""
    processor: Any = request.processor
    return processor.nms_iou_threshold, recommended_threshold(request.model.config)


def unique_labels(labels: list[str]) -> list[str]:
    """Append the index to labels that occur more than once, as "crane" in ImageNet: Core ML has one score per name."""
    counts = Counter(labels)
    return [f"{label} ({i})" if counts[label] > 1 else label for i, label in enumerate(labels)]


def _describe(package: Any, request: ExportRequest) -> None:
    """Set the metadata that Xcode shows."""
    is_detector, (height, width) = request.task == "object-detection", request.size
    values: dict[str, float] = {"height": height, "width": width}
    if is_detector:
        values["iou"], values["confidence"] = _thresholds(request)
    package.short_description = (
        f"MobileViT {TASKS[request.task].title} for {len(request.labels)} classes, "
        f"{request.dtype}. Exported by mobilevit_hf {__version__}."
    )
    package.user_defined_metadata.update(request.metadata)
    description = package._spec.description
    for feature in (*description.input, *description.output):
        if feature.name in DESCRIPTIONS:
            feature.shortDescription = DESCRIPTIONS[feature.name].format_map(values)
