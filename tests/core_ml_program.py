"""Read Core ML packages and run their programs operation by operation, as Core ML itself requires macOS."""

import json

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOB_SENTINEL = 0xDEADBEEF
NUMPY_DTYPES = {"FLOAT16": np.float16, "FLOAT32": np.float32, "INT32": np.int32, "BOOL": np.bool_}
TORCH_DTYPES = {"fp16": torch.float16, "fp32": torch.float32, "int32": torch.int32, "bool": torch.bool}


class Package:
    """A Core ML package.

    Attributes:
        spec: The root `Model` message.
        program: Operations of the ML program, in order.
    """

    def __init__(self, path):
        from coremltools.proto import MIL_pb2, Model_pb2

        manifest = json.loads((path / "Manifest.json").read_text())
        item = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
        file = path / "Data" / item["path"]
        self.folder, self.dtype_name = file.parent, MIL_pb2.DataType.Name
        self.spec = Model_pb2.Model.FromString(file.read_bytes())
        is_pipeline = self.spec.WhichOneof("Type") == "pipeline"
        self.models = list(self.spec.pipeline.models) if is_pipeline else [self.spec]
        (program,) = (model.mlProgram for model in self.models if model.WhichOneof("Type") == "mlProgram")
        self.function = program.functions["main"]
        self.block = self.function.block_specializations[self.function.opset]
        self.program = list(self.block.operations)

    def run(self, image):
        """Run the ML program on an image, (H, W, 3) uint8 RGB, and return its outputs by name.

        Raises:
            AssertionError: If the type or the shape of a value is not that in the file.
        """
        (name,) = (value.name for value in self.function.inputs)
        values = {name: torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()}
        for operation in self.program:
            if operation.type == "const":
                outputs = (self.read_value(operation.attributes["val"]),)
            else:
                outputs = OPERATIONS[operation.type](**self.read_inputs(operation, values))
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            for output, value in zip(operation.outputs, outputs, strict=True):
                if isinstance(value, Tensor):
                    self._check_type(output, value)
                values[output.name] = value
        return {name: values[name] for name in self.block.outputs}

    def read_inputs(self, operation, values):
        """Return the inputs of an operation by parameter: values, or a list of them for several arguments."""
        inputs = {}
        for parameter, argument in operation.inputs.items():
            bound = [
                values[each.name] if each.WhichOneof("binding") == "name" else self.read_value(each.value)
                for each in argument.arguments
            ]
            inputs[parameter] = bound if parameter == "values" else bound[0]
        return inputs

    def read_constants(self):
        """Return the constants by name."""
        return {
            operation.outputs[0].name: self.read_value(operation.attributes["val"])
            for operation in self.program
            if operation.type == "const"
        }

    def read_value(self, value):
        """Return a constant: a tensor, a string or a list."""
        if value.type.WhichOneof("type") == "listType":
            return [self.read_value(each) for each in value.immediateValue.list.values]
        type, immediate = value.type.tensorType, value.immediateValue.tensor
        name = self.dtype_name(type.dataType)
        shape = tuple(dimension.constant.size for dimension in type.dimensions)
        if name == "STRING":
            (string,) = immediate.strings.values
            return string
        if value.WhichOneof("value") == "blobFileValue":
            array = self._read_blob(value.blobFileValue, NUMPY_DTYPES[name])
        else:
            kind = immediate.WhichOneof("value")
            values = getattr(immediate, kind).values
            array = np.frombuffer(values, NUMPY_DTYPES[name]) if kind == "bytes" else np.array(values)
        return torch.from_numpy(array.astype(NUMPY_DTYPES[name]).reshape(shape))

    def _read_blob(self, blob, dtype):
        content = (self.folder / blob.fileName.removeprefix("@model_path/")).read_bytes()
        sentinel, _ = np.frombuffer(content, np.uint32, 2, blob.offset)
        assert sentinel == BLOB_SENTINEL
        size, offset = np.frombuffer(content, np.uint64, 2, blob.offset + 8)
        return np.frombuffer(content[offset : offset + size], dtype)

    def _check_type(self, output, value):
        type = output.type.tensorType
        shape = tuple(dimension.constant.size for dimension in type.dimensions)
        dtype = torch.from_numpy(np.zeros((), NUMPY_DTYPES[self.dtype_name(type.dataType)])).dtype
        assert (value.dtype, tuple(value.shape)) == (dtype, shape), output.name


def output_shapes(operation):
    """Return the shapes of an operation's outputs."""
    return [tuple(d.constant.size for d in output.type.tensorType.dimensions) for output in operation.outputs]


def suppress(confidence, coordinates, nms, threshold=None):
    """Apply a `NonMaximumSuppression` message to (M, K) and (M, 4): return rows of boxes, scores and class indices.

    As its documentation says: boxes below the confidence threshold are dropped; of the boxes of a class, its highest
    score in the row, the one with the highest score is kept, and those that overlap with it are dropped, until none is
    left.
    """
    assert nms.WhichOneof("SuppressionMethod") == "pickTop"
    assert nms.pickTop.perClass
    threshold = nms.confidenceThreshold if threshold is None else threshold
    scores, labels = confidence.max(axis=1), confidence.argmax(axis=1)
    x, y, width, height = coordinates.T
    boxes = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)
    kept = []
    for index in np.argsort(-scores, kind="stable"):
        others = [other for other in kept if labels[other] == labels[index]]
        if scores[index] >= threshold and all(iou(boxes[index], boxes[each]) <= nms.iouThreshold for each in others):
            kept.append(index)
    return boxes[kept], scores[kept], labels[kept]


def iou(box, other):
    """Return the IoU of two boxes (x1, y1, x2, y2)."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    intersection = np.prod(np.maximum(sides, 0))
    return intersection / (np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2]) - intersection)


def _conv(x, weight, strides, pad_type, pad, dilations, groups, bias=None):
    assert pad_type in ("valid", "custom")
    if pad_type == "custom":
        top, bottom, left, right = pad.tolist()
        x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(x, weight, bias, strides.tolist(), 0, dilations.tolist(), int(groups))


def _batch_norm(x, mean, variance, epsilon, gamma=None, beta=None):
    return F.batch_norm(x, mean, variance, gamma, beta, eps=float(epsilon))


def _slice(x, begin, end, stride=None, begin_mask=None, end_mask=None, squeeze_mask=None):
    false = [False] * x.ndim
    masks = [false if mask is None else mask.tolist() for mask in (begin_mask, end_mask, squeeze_mask)]
    strides = [1] * x.ndim if stride is None else stride.tolist()
    index = []
    for first, last, step, from_start, to_end, squeezes in zip(
        begin.tolist(), end.tolist(), strides, *masks, strict=True
    ):
        whole = slice(None if from_start else first, None if to_end else last, step)
        index.append(first if squeezes else whole)
    return x[tuple(index)]


def _layer_norm(x, axes, epsilon, gamma=None, beta=None):
    assert axes.tolist() in ([x.ndim - 1], [-1])
    return F.layer_norm(x, x.shape[-1:], gamma, beta, float(epsilon))


def _matmul(x, y, transpose_x, transpose_y):
    return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)


def _topk(x, k, axis, ascending, sort=True, return_indices=True):
    assert sort
    assert return_indices
    values, indices = x.topk(int(k), int(axis), largest=not ascending)
    return values, indices.int()


def _upsample(x, scale_factor_height, scale_factor_width, align_corners):
    assert not align_corners
    size = int(x.shape[2] * float(scale_factor_height)), int(x.shape[3] * float(scale_factor_width))
    return F.interpolate(x, size, mode="bilinear")


def _classify(probabilities, classes):
    scores = dict(zip(classes, probabilities.flatten().tolist(), strict=True))
    return max(scores, key=scores.get), scores


OPERATIONS = {
    "add": lambda x, y: x + y,
    "batch_norm": _batch_norm,
    "cast": lambda x, dtype: x.to(TORCH_DTYPES[dtype]),
    "classify": _classify,
    "clip": lambda x, alpha, beta: x.clamp(alpha, beta),
    "concat": lambda values, axis, interleave: torch.cat(values, int(axis)),
    "conv": _conv,
    "equal": lambda x, y: x == y,
    "exp": lambda x: x.exp(),
    "expand_dims": lambda x, axes: x.reshape(_expanded(x.shape, axes.tolist())),
    "floor_div": lambda x, y: torch.div(x, y, rounding_mode="floor"),
    "gather": lambda x, indices, axis, **options: x.index_select(int(axis), indices),
    "layer_norm": _layer_norm,
    "linear": lambda x, weight, bias=None: F.linear(x, weight, bias),
    "matmul": _matmul,
    "mul": lambda x, y: x * y,
    "reduce_argmax": lambda x, axis, keep_dims, output_dtype="int32": x.argmax(int(axis), bool(keep_dims)).int(),
    "reduce_mean": lambda x, axes, keep_dims: x.mean(axes.tolist(), keepdim=bool(keep_dims)),
    "relu": lambda x: x.relu(),
    "reshape": lambda x, shape: x.reshape(shape.tolist()),
    "silu": lambda x: F.silu(x),
    "slice_by_index": _slice,
    "softmax": lambda x, axis: x.softmax(int(axis)),
    "sub": lambda x, y: x - y,
    "tile": lambda x, reps: x.tile(reps.tolist()),
    "topk": _topk,
    "upsample_bilinear": _upsample,
    "transpose": lambda x, perm: x.permute(perm.tolist()),
}


def _expanded(shape, axes):
    """Return a shape with dimensions of size 1 inserted."""
    shape = list(shape)
    for axis in sorted(axes):
        shape.insert(axis, 1)
    return shape
