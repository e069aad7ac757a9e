"""A small LiteRT file, as the converter writes it."""

import numpy as np
import pytest

flatbuffers = pytest.importorskip("flatbuffers")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated")

WEIGHTS = np.arange(16 * 16 * 3, dtype=np.float32)


def make_content():
    """Return a LiteRT file as the converter writes it, of one operation: an image plus `WEIGHTS`."""
    model = schema.ModelT()
    model.version = 3
    add = schema.OperatorCodeT()
    add.builtinCode = add.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    model.operatorCodes = [add]
    graph = schema.SubGraphT()
    names = ("args_0", "a.b.Weights_weights", "a.b.Outer_outer/c.Inner_inner_1;2")
    graph.tensors = []
    for name in names:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, [1, 16, 16, 3], schema.TensorType.FLOAT32
        tensor.buffer = 1 if name == names[1] else 0
        graph.tensors.append(tensor)
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1], [2]
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    graph.operators, graph.inputs, graph.outputs = [operator], [0], [2]
    model.subgraphs = [graph]
    weights = schema.BufferT()
    weights.data = WEIGHTS.view(np.uint8)
    model.buffers = [schema.BufferT(), weights]
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    signature.inputs = [schema.TensorMapT("args_0", 0)]
    signature.outputs = [schema.TensorMapT("output_0", 2)]
    model.signatureDefs, model.metadata = [signature], []
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
