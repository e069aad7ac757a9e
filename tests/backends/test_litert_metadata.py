"""Metadata of LiteRT files, read back by the field numbers of the published schemas."""

import io
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mobilevit_hf.backends.requests import ExportRequest

flatbuffers = pytest.importorskip("flatbuffers")
pytest.importorskip("ai_edge_litert")
from litert_file import WEIGHTS, make_content  # noqa: E402


def make_request(task, interface="image"):
    config = SimpleNamespace(id2label={0: "Hut", 1: "Mütze"}, num_labels=2, recommended_threshold=0.4)
    return ExportRequest(SimpleNamespace(config=config), task, None, torch.zeros(1, 3, 16, 24), interface=interface)


@pytest.fixture(scope="module")
def classifier_file():
    from mobilevit_hf.backends.litert_metadata import add_metadata

    return add_metadata(make_content(), make_request("image-classification"))


class Table:
    """A table of a flatbuffer, whose fields are found by their numbers in the schema."""

    def __init__(self, buffer, position):
        self.table = flatbuffers.table.Table(buffer, position)

    @classmethod
    def root(cls, buffer):
        return cls(buffer, flatbuffers.encode.Get(flatbuffers.packer.uoffset, buffer, 0))

    def offset(self, field):
        return self.table.Offset(4 + 2 * field)

    def scalar(self, field, flags):
        return self.table.Get(flags, self.table.Pos + self.offset(field))

    def text(self, field):
        return self.table.String(self.table.Pos + self.offset(field)).decode()

    def child(self, field):
        return Table(self.table.Bytes, self.table.Indirect(self.table.Pos + self.offset(field)))

    def children(self, field):
        if not self.offset(field):
            return []
        start, length = self.table.Vector(self.offset(field)), self.table.VectorLen(self.offset(field))
        return [Table(self.table.Bytes, self.table.Indirect(start + 4 * i)) for i in range(length)]

    def array(self, field, flags):
        return self.table.GetVectorAsNumpy(flags, self.offset(field)).tolist()


def read_metadata(content):
    """Return the metadata's root table: `Model.metadata` is field 6, `Model.buffers` field 4 of the TFLite schema."""
    model = Table.root(content)
    (entry,) = [each for each in model.children(6) if each.text(0) == "TFLITE_METADATA"]
    buffer = model.children(4)[entry.scalar(1, flatbuffers.number_types.Uint32Flags)]
    data = bytes(buffer.array(0, flatbuffers.number_types.Uint8Flags))
    assert data[4:8] == b"M001"
    return Table.root(data)


def test_archive_contains_labels_without_compression_and_time(classifier_file):
    with zipfile.ZipFile(io.BytesIO(classifier_file)) as archive:
        assert archive.read("labels.txt").decode().splitlines() == ["Hut", "Mütze"]
        entry = archive.getinfo("labels.txt")
    assert entry.compress_type == zipfile.ZIP_STORED
    assert entry.date_time == (1980, 1, 1, 0, 0, 0)  # the same file from each export


def test_metadata_describe_image_and_scores(classifier_file):
    numbers = flatbuffers.number_types
    (graph,) = read_metadata(classifier_file).children(3)
    (image,), (scores,) = graph.children(2), graph.children(3)
    assert [each.text(0) for each in (image, scores)] == ["image", "scores"]
    assert image.child(3).scalar(0, numbers.Uint8Flags) == 2  # ImageProperties
    properties = image.child(3).child(1)
    assert properties.scalar(0, numbers.Int8Flags) == 1  # RGB
    assert [properties.child(1).scalar(field, numbers.Uint32Flags) for field in (0, 1)] == [24, 16]  # width, height
    (unit,) = image.children(4)
    assert unit.scalar(0, numbers.Uint8Flags) == 1  # NormalizationOptions
    assert [unit.child(1).array(field, numbers.Float32Flags) for field in (0, 1)] == [[0], [1]]
    (labels,) = scores.children(6)
    assert labels.text(0) == "labels.txt"
    assert labels.scalar(2, numbers.Int8Flags) == 2  # TENSOR_AXIS_LABELS


def test_metadata_of_detector_describe_boxes_threshold_and_labels():
    from mobilevit_hf.backends.litert_metadata import _describe, _pack

    numbers = flatbuffers.number_types
    root = Table.root(_pack(_describe(make_request("object-detection")), b"M001"))
    boxes, scores, labels = root.children(3)[0].children(3)
    assert [each.text(0) for each in (boxes, scores, labels)] == ["boxes", "scores", "labels"]
    assert boxes.child(3).scalar(0, numbers.Uint8Flags) == 3  # BoundingBoxProperties
    assert boxes.child(3).child(1).array(0, numbers.Uint32Flags) == [0, 1, 2, 3]
    assert boxes.child(3).child(1).scalar(1, numbers.Int8Flags) == 1  # BOUNDARIES
    (threshold,) = scores.children(4)
    assert threshold.scalar(0, numbers.Uint8Flags) == 3  # ScoreThresholdingOptions
    assert threshold.child(1).scalar(0, numbers.Float32Flags) == pytest.approx(0.4)
    assert labels.children(6)[0].scalar(2, numbers.Int8Flags) == 3  # TENSOR_VALUE_LABELS


def test_weights_are_aligned(classifier_file):
    assert classifier_file.index(WEIGHTS.tobytes()) % 16 == 0


def test_runtime_reads_names_and_weights(classifier_file, tmp_path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(model_content=classifier_file)
    signature = interpreter.get_signature_list()["serving_default"]
    assert signature == {"inputs": ["image"], "outputs": ["scores"]}
    output = interpreter.get_signature_runner()(image=np.ones((1, 16, 16, 3), np.float32))["scores"]
    np.testing.assert_array_equal(output.ravel(), WEIGHTS + 1)
    assert [each["name"] for each in interpreter.get_tensor_details()] == ["image", "weights", "scores"]


def test_names_of_tensors_are_attributes():
    from mobilevit_hf.backends.litert_metadata import _shorten

    assert _shorten("a.layers.Outer_outer/b.Inner_0/c.Linear_query;1") == "outer/0/query;1"
    assert _shorten("arith.constant") == "arith.constant"
