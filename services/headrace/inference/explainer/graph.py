"""Whether an ONNX model's answer moves without jumps when its numbers do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

# Continuous in each of their inputs, wherever they answer with a number.
_CONTINUOUS: Final = re.compile(
    "Abs|Add|AveragePool|BatchNormalization|Celu|Clip|Concat|Conv|ConvTranspose|Dropout|"
    "Elu|Erf|Exp|Expand|Flatten|Gelu|Gemm|GlobalAveragePool|GlobalMaxPool|HardSigmoid|"
    "HardSwish|Identity|InstanceNormalization|LayerNormalization|LeakyRelu|Log|LogSoftmax|"
    "MatMul|Max|MaxPool|Mean|Min|Mish|Mul|Neg|PRelu|Pad|ReduceL1|ReduceL2|ReduceMax|"
    "ReduceMean|ReduceMin|ReduceSum|Relu|Reshape|Selu|Sigmoid|Slice|Softmax|Softplus|"
    "Softsign|Split|Sqrt|Squeeze|Sub|Sum|Tanh|Transpose|Unsqueeze"
)
# Continuous in their first input, or in those behind it; the others choose.
_CHOOSING: Final = {"Gather": (0,), "Where": (1, 2), "Div": (0,), "Pow": (0,)}
# No number everywhere: whether what they answer is one depends on the numbers.
_PARTIAL: Final = frozenset(("Log", "Pow", "Sqrt"))
# The same for all numbers.
_CONSTANT: Final = frozenset(("IsNaN", "Shape", "Size"))
_GRAPHS: Final = frozenset((AttributeProto.GRAPH, AttributeProto.GRAPHS))
_FLOATS: Final = frozenset((TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16))


def is_continuous(file: Path, inputs: frozenset[str], output: str) -> bool:
    """Whether every operator between the inputs and the output is known to be continuous.

    A comparison, a rounding, a tree, an index or a look-up on the way makes it False, and so does whatever is
    not known here: False is always safe to say.
    """
    graph = onnx.load(file).graph
    moving = set(inputs)
    jumping: set[str] = set()
    powers = _powers(graph)
    all_numbers = True
    # A graph's nodes stand in the order in which they are computed.
    for node in graph.node:
        # What a nested graph takes from outside is not among its node's inputs.
        nested = any(entry.type in _GRAPHS for entry in node.attribute)
        moved = [place for place, name in enumerate(node.input) if name in moving]
        jumped = any(name in jumping for name in node.input)
        # Of what jumps not even the size is the same: places at which something is above zero.
        if not (moved or jumped or nested):
            continue
        if node.op_type in _CONSTANT and not jumped and (all_numbers or node.op_type != "IsNaN"):
            continue
        # 1 / x jumps at zero.
        inverse = node.op_type == "Pow" and node.input[1] not in powers
        if jumped or nested or inverse or not _passes(node, moved):
            jumping.update(node.output)
        else:
            moving.update(node.output)
        all_numbers &= node.op_type not in _PARTIAL
    return output in moving


def _powers(graph: Any) -> frozenset[str]:
    """Names of constants none of which is below zero: those that exponents may be."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            values = (entry.t for entry in node.attribute if entry.name == "value")
            constants |= zip(node.output, values, strict=False)
    exponents = {node.input[1] for node in graph.node if node.op_type == "Pow"} & constants.keys()
    return frozenset(name for name in exponents if (numpy_helper.to_array(constants[name]) >= 0).all())


def _passes(node: Any, moved: list[int]) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Cast":
        return any(entry.name == "to" and entry.i in _FLOATS for entry in node.attribute)
    allowed = _CHOOSING.get(node.op_type)
    return bool(_CONTINUOUS.fullmatch(node.op_type)) if allowed is None else set(moved) <= set(allowed)
