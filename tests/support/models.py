"""Small ONNX models for tests."""

from __future__ import annotations

import json

from onnx import TensorProto, helper

from headrace.api.registry.v1 import registry_pb2


def classifier(weight: float, more: int = 0) -> bytes:
    """Three features in; two probabilities and a label out, 1 for positive sums where weight is above 1.

    With so many more classes before the two, none of them that of a positive sum.
    """
    of_a_feature = [*[-1.0] * more, 1, weight]
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 3])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2 + more])
    label = helper.make_tensor_value_info("label", TensorProto.INT64, [None])
    weights = helper.make_tensor("weights", TensorProto.FLOAT, [3, 2 + more], of_a_feature * 3)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["features", "weights"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["probabilities"]),
            helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
        ],
        "classifier",
        [features],
        [probabilities, label],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def failing_classifier() -> bytes:
    """Like `classifier`, but it fails for rows whose first feature is not zero: it passes Triton's trial."""
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 3])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])
    label = helper.make_tensor_value_info("label", TensorProto.INT64, [None])
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["features", "weights"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["probabilities"]),
            helper.make_node("Gather", ["features", "first"], ["number"], axis=1),
            helper.make_node("Cast", ["number"], ["place"], to=TensorProto.INT64),
            helper.make_node("Gather", ["labels", "place"], ["label"]),
        ],
        "failing_classifier",
        [features],
        [probabilities, label],
        [
            helper.make_tensor("weights", TensorProto.FLOAT, [3, 2], [1, 2] * 3),
            helper.make_tensor("first", TensorProto.INT64, [], [0]),
            # One entry: any place but 0 is out of bounds.
            helper.make_tensor("labels", TensorProto.INT64, [1], [0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def slow_classifier() -> bytes:
    """Like `classifier`, after as many products of matrices as the largest first feature of its rows says."""
    size = 128
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 3])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])
    label = helper.make_tensor_value_info("label", TensorProto.INT64, [None])
    matrix = helper.make_tensor("matrix", TensorProto.FLOAT, [size, size], [0.0] * size * size)
    step = helper.make_graph(
        [
            helper.make_node("MatMul", ["product", "matrix"], ["next_product"]),
            helper.make_node("Identity", ["go_on"], ["still_go_on"]),
        ],
        "step",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("product", TensorProto.FLOAT, [size, size]),
        ],
        [
            helper.make_tensor_value_info("still_go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next_product", TensorProto.FLOAT, [size, size]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["features", "first"], ["sizes"], axis=1),
            helper.make_node("ReduceMax", ["sizes"], ["largest"], keepdims=0),
            helper.make_node("Cast", ["largest"], ["rounds"], to=TensorProto.INT64),
            helper.make_node("Loop", ["rounds", "", "matrix"], ["end"], body=step),
            helper.make_node("ReduceMax", ["end"], ["zero"], keepdims=0),
            helper.make_node("MatMul", ["features", "weights"], ["products"]),
            helper.make_node("Add", ["products", "zero"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["probabilities"]),
            helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
        ],
        "slow_classifier",
        [features],
        [probabilities, label],
        [
            matrix,
            helper.make_tensor("weights", TensorProto.FLOAT, [3, 2], [1, 2] * 3),
            helper.make_tensor("first", TensorProto.INT64, [], [0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def hungry_classifier(row_bytes: int) -> bytes:
    """Like `slow_classifier`, with so many bytes in use for each row while it computes."""
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 3])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])
    label = helper.make_tensor_value_info("label", TensorProto.INT64, [None])
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["features", "zeros"], ["zero"]),
            helper.make_node("Expand", ["zero", "size"], ["many_zeros"]),
            helper.make_node("ReduceMax", ["many_zeros"], ["largest"], axes=[1]),
            helper.make_node("MatMul", ["features", "weights"], ["products"]),
            helper.make_node("Add", ["products", "largest"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["probabilities"]),
            helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
        ],
        "hungry_classifier",
        [features],
        [probabilities, label],
        [
            helper.make_tensor("zeros", TensorProto.FLOAT, [3, 1], [0.0] * 3),
            helper.make_tensor("size", TensorProto.INT64, [2], [1, row_bytes // 4]),
            helper.make_tensor("weights", TensorProto.FLOAT, [3, 2], [1, 2] * 3),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def classifier_signature(*classes: str) -> registry_pb2.Signature:
    """Of `classifier`, whose classes are words, where some are given."""
    tensor = registry_pb2.TensorSpec
    return registry_pb2.Signature(
        inputs=[tensor(name="features", datatype="FP32", shape=[-1, 3])],
        outputs=[
            tensor(name="probabilities", datatype="FP32", shape=[-1, len(classes) or 2]),
            tensor(name="label", datatype="INT64", shape=[-1]),
        ],
        features=["a", "b", "c"],
        classes=list(map(json.dumps, classes)) or ["0", "1"],
    )
