"""The models that benchmarks serve, and one request for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import service_pb2

from headrace.api.registry.v1 import registry_pb2

MODEL: Final = "mlp"
FEATURES: Final = 30
IMAGE: Final = (3, 592, 592)


@dataclass(frozen=True)
class Served:
    """A model as ONNX, what it takes and answers, and one request."""

    onnx: bytes
    signature: registry_pb2.Signature
    request: bytes


def mlp(*, label: str = "ArgMax") -> bytes:
    """The model: 30 features, 64 hidden, 2 classes; with ArgMin it answers the other class."""
    return _classifier(
        [
            helper.make_node("Gemm", ["features", "w1", "b1"], ["h"]),
            helper.make_node("Relu", ["h"], ["a"]),
            helper.make_node("Gemm", ["a", "w2", "b2"], ["z"]),
        ],
        helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, FEATURES]),
        {"w1": (FEATURES, 64), "b1": (64,), "w2": (64, 2), "b2": (2,)},
        [],
        label,
    )


def glance() -> bytes:
    """A model of images that looks at every sixteenth pixel: what it costs is the way of the bytes."""
    strides = [[0, 0], [1 << 30, 1 << 30], [2, 3], [16, 16]]
    return _classifier(
        [
            helper.make_node("Slice", ["features", "from", "to", "axes", "steps"], ["some"]),
            helper.make_node("Cast", ["some"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["numbers"], ["colours"], axes=[2, 3], keepdims=0),
            helper.make_node("Gemm", ["colours", "w", "b"], ["z"]),
        ],
        helper.make_tensor_value_info("features", TensorProto.UINT8, [None, *IMAGE]),
        {"w": (3, 2), "b": (2,)},
        [
            numpy_helper.from_array(np.array(values, dtype=np.int64), name)
            for name, values in zip(("from", "to", "axes", "steps"), strides, strict=True)
        ],
        "ArgMax",
    )


def _classifier(
    nodes: list[object],
    features: object,
    weights: dict[str, tuple[int, ...]],
    constants: list[object],
    label: str,
) -> bytes:
    """A model whose nodes make the logits z of two classes."""
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [
            *nodes,
            helper.make_node("Softmax", ["z"], ["probabilities"]),
            helper.make_node(label, ["probabilities"], ["label"], axis=1, keepdims=0),
        ],
        MODEL,
        [features],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2]),
            helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
        ],
        [
            *(
                numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
                for name, shape in weights.items()
            ),
            *constants,
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def _signature(datatype: str, shape: tuple[int, ...]) -> registry_pb2.Signature:
    return registry_pb2.Signature(
        inputs=[registry_pb2.TensorSpec(name="features", datatype=datatype, shape=[-1, *shape])],
        outputs=[
            registry_pb2.TensorSpec(name="probabilities", datatype="FP32", shape=[-1, 2]),
            registry_pb2.TensorSpec(name="label", datatype="INT64", shape=[-1]),
        ],
        classes=["0", "1"],
    )


def _request(datatype: str, values: np.ndarray) -> bytes:
    """No version and no id: what the stamp has most to do with."""
    message = service_pb2.ModelInferRequest(model_name=MODEL)
    message.inputs.add(name="features", datatype=datatype, shape=values.shape)
    message.raw_input_contents.append(values.tobytes())
    return bytes(message.SerializeToString())


_ROW: Final = np.linspace(-1, 1, FEATURES, dtype=np.float32)[None]
_PIXELS: Final = np.random.default_rng(0).integers(0, 256, (1, *IMAGE), np.uint8)
ROW_VALUES: Final = [float(value) for value in _ROW[0]]
ROWS: Final = Served(mlp(), _signature("FP32", (FEATURES,)), _request("FP32", _ROW))
IMAGES: Final = Served(glance(), _signature("UINT8", IMAGE), _request("UINT8", _PIXELS))
