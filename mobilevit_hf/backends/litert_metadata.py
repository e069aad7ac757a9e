"""Names and metadata in LiteRT files, as MediaPipe, Android's task libraries and Netron read them.

The metadata (TensorFlow Lite Metadata, schema version 1.1.0) are a flatbuffer in the model's list of metadata, and the
class names a text file in a ZIP archive that follows the model in the same file. Further values are there too, as an
app needs another library to read the flatbuffer.
"""

import io
import zipfile
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ..model_sources import recommended_threshold
from .requests import ExportRequest

LABELS_FILE = "labels.txt"
VALUE_FILES = ("recommended_threshold", "crop_pct")  # of `ExportRequest.metadata`
METADATA_NAME = b"TFLITE_METADATA"
METADATA_IDENTIFIER, MODEL_IDENTIFIER = b"M001", b"TFL3"
ALIGNMENT = 16  # bytes, of the weights in the file

# Fields of each table of the schema, in its order. A union is two fields, its type and its table.
FIELDS = {
    "ModelMetadata": (
        *("name", "description", "version", "subgraph_metadata", "author", "license", "associated_files"),
        "min_parser_version",
    ),
    "SubGraphMetadata": ("name", "description", "input_tensor_metadata", "output_tensor_metadata"),
    "TensorMetadata": (
        *("name", "description", "dimension_names", "content", "process_units", "stats", "associated_files"),
    ),
    "Content": ("content_properties_type", "content_properties", "range"),
    "ImageProperties": ("color_space", "default_size"),
    "ImageSize": ("width", "height"),
    "BoundingBoxProperties": ("index", "type", "coordinate_type"),
    "FeatureProperties": (),
    "ProcessUnit": ("options_type", "options"),
    "NormalizationOptions": ("mean", "std"),
    "ScoreThresholdingOptions": ("global_score_threshold",),
    "Stats": ("max", "min"),
    "AssociatedFile": ("name", "description", "type"),
}
FEATURE, IMAGE, BOUNDING_BOX = map(np.uint8, (1, 2, 3))  # types of content
AXIS_LABELS, VALUE_LABELS = map(np.int8, (2, 3))  # a tensor with a value per class, or with class indices
NORMALIZATION, SCORE_THRESHOLD = map(np.uint8, (1, 3))
RGB, BOUNDARIES = np.int8(1), np.int8(1)  # BOUNDARIES: (left, top, right, bottom)

DESCRIPTIONS = {
    "image": "RGB image as bytes, resized to the input size. The model scales it itself.",
    "pixel_values": "Output of the image processor, see preprocessor_config.json.",
    "scores": "Scores, 0..1.",
    "boxes": "Boxes (left, top, right, bottom) as fractions of the image, in descending order of the score.",
    "labels": "Class index of each box. Rows without a detection are 0 in all outputs.",
    "logits": "Logits of the classes.",
    "pred_boxes": "Boxes (center x, center y, width, height) as fractions of the image.",
}
PIXEL_DESCRIPTIONS = DESCRIPTIONS | {  # of a segmentation model
    "labels": "Class index of each pixel.",
    "logits": "Logits of the classes (1, K, height, width) at a fraction of the resolution.",
}


def add_metadata(content: bytes, request: ExportRequest) -> bytes:
    """Return a LiteRT file with named inputs and outputs, metadata and class names.

    Args:
        content: File of one input and of outputs in the order of `request.output_names`, whose tensors are named by
            their modules.
    """
    model = _read(content)
    (graph,), (signature,) = model.subgraphs, model.signatureDefs
    for tensor in graph.tensors:
        tensor.name = _shorten(tensor.name.decode())
    signature.inputs = _name(graph, graph.inputs, (request.input_name,))
    signature.outputs = _name(graph, graph.outputs, request.output_names)
    metadata = schema.MetadataT()
    metadata.name, metadata.buffer = METADATA_NAME, len(model.buffers)
    model.metadata.append(metadata)
    model.buffers.append(_Buffer(_pack(_describe(request), METADATA_IDENTIFIER)))
    archive = io.BytesIO(_pack(model, MODEL_IDENTIFIER))
    with zipfile.ZipFile(archive, "a") as files:  # stored, as MediaPipe requires
        files.writestr(
            zipfile.ZipInfo(LABELS_FILE), "".join(f"{' '.join(label.split())}\n" for label in request.labels)
        )
        for name, value in request.metadata.items():
            if name in VALUE_FILES:
                files.writestr(zipfile.ZipInfo(name), value)
    return archive.getvalue()


class _Buffer(schema.BufferT):
    """Data of a tensor, aligned in the file, which the generated class neglects."""

    def Pack(self, builder: flatbuffers.Builder) -> int:
        if self.data is not None:
            data = bytes(self.data)
            builder.Prep(ALIGNMENT, len(data))
            vector = builder.CreateByteVector(data)
        schema.BufferStart(builder)
        if self.data is not None:
            schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)


def _read(content: bytes) -> schema.ModelT:
    """Read a file, with the data of large tensors that the quantizer writes behind the flatbuffer."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for i, buffer in enumerate(model.buffers):
        data = content[buffer.offset : buffer.offset + buffer.size] if buffer.offset > 1 else buffer.data
        model.buffers[i] = _Buffer(data)
    return model


def _shorten(name: str) -> str:
    """Shorten the name of a tensor to attributes: "layers.TokenLinear_query/a.Linear_b;1" → "query/b;1".

    The module path of each class takes a tenth of a quantized file.
    """
    return "/".join(part.rpartition(".")[2].partition("_")[2] or part for part in name.split("/"))


def _name(graph: schema.SubGraphT, indices: list[int], names: tuple[str, ...]) -> list[schema.TensorMapT]:
    """Name tensors, and return the entries of a signature."""
    entries = []
    for index, name in zip(indices, names, strict=True):
        graph.tensors[index].name = name
        entries.append(schema.TensorMapT(name, index))
    return entries


class _Table:
    """A table of the metadata schema. Numbers are numpy scalars of the field's type; None is left out."""

    def __init__(self, kind: str, **fields: Any) -> None:
        self.kind, self.fields = kind, fields

    def Pack(self, builder: flatbuffers.Builder) -> int:
        slots = FIELDS[self.kind]
        packed = {name: _pack_field(builder, value) for name, value in self.fields.items() if value is not None}
        builder.StartObject(len(slots))
        for name, value in packed.items():
            slot = slots.index(name)
            if isinstance(value, np.generic):
                getattr(builder, f"Prepend{type(value).__name__.capitalize()}Slot")(slot, value.item(), None)
            else:
                builder.PrependUOffsetTRelativeSlot(slot, value, 0)
        return builder.EndObject()


def _pack_field(builder: flatbuffers.Builder, value: Any) -> Any:
    """Return a number, or the offset of a table, text, array or list, which is written."""
    if isinstance(value, np.generic):
        return value
    if isinstance(value, _Table):
        return value.Pack(builder)
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, np.ndarray):
        return builder.CreateNumpyVector(value)
    offsets = [_pack_field(builder, item) for item in value]
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _pack(root: Any, identifier: bytes) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(root.Pack(builder), identifier)
    return bytes(builder.Output())


def _describe(request: ExportRequest) -> _Table:
    """Return the metadata of a file."""
    subgraph = _Table(
        "SubGraphMetadata",
        input_tensor_metadata=[_describe_input(request)],
        output_tensor_metadata=[_describe_output(name, request) for name in request.output_names],
    )
    return _Table(
        "ModelMetadata",
        name=f"MobileViT, {request.task}",
        subgraph_metadata=[subgraph],
        min_parser_version="1.0.0",
    )


def _describe_input(request: ExportRequest) -> _Table:
    fields = {}
    if request.interface == "image":
        height, width = map(np.uint32, request.size)
        size = _Table("ImageSize", width=width, height=height)
        identity = _Table("NormalizationOptions", mean=_floats(0), std=_floats(1))
        fields = {
            "content": _content(IMAGE, _Table("ImageProperties", color_space=RGB, default_size=size)),
            "process_units": [_Table("ProcessUnit", options_type=NORMALIZATION, options=identity)],
            "stats": _Table("Stats", max=_floats(255), min=_floats(0)),
        }
    name = request.input_name
    return _Table("TensorMetadata", name=name, description=DESCRIPTIONS[name], **fields)


def _describe_output(name: str, request: ExportRequest) -> _Table:
    content, units, files = _content(FEATURE, _Table("FeatureProperties")), None, None
    if name == "boxes":
        order = np.arange(4, dtype=np.uint32)
        content = _content(BOUNDING_BOX, _Table("BoundingBoxProperties", index=order, type=BOUNDARIES))
    if name == "scores" and request.task == "object-detection":
        threshold = _Table(
            "ScoreThresholdingOptions",
            global_score_threshold=np.float32(recommended_threshold(request.model.config)),
        )
        units = [_Table("ProcessUnit", options_type=SCORE_THRESHOLD, options=threshold)]
    if name == "labels" or request.task == "image-classification":
        kind = VALUE_LABELS if name == "labels" else AXIS_LABELS
        files = [_Table("AssociatedFile", name=LABELS_FILE, description="Class names by index.", type=kind)]
    descriptions = PIXEL_DESCRIPTIONS if request.task == "image-segmentation" else DESCRIPTIONS
    fields = {"content": content, "process_units": units, "associated_files": files}
    return _Table("TensorMetadata", name=name, description=descriptions[name], **fields)


def _floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def _content(kind: np.uint8, properties: _Table) -> _Table:
    return _Table("Content", content_properties_type=kind, content_properties=properties)
