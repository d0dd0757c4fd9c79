"""Ray Serve's deployment of one ONNX model."""

# Ray sends the class with all that its methods hold, and the protocol's classes cannot be sent.
from __future__ import annotations

import numpy as np
from onnx_model import OnnxModel
from ray import serve
from ray.serve.schema import LoggingConfig
from tritonclient.grpc import service_pb2

DATATYPES = {"float32": "FP32", "int64": "INT64"}


@serve.deployment(max_ongoing_requests=1000, logging_config=LoggingConfig(enable_access_log=False))
class Served:
    """Answers in the Open Inference Protocol."""

    def __init__(self, path):
        self._model = OnnxModel(path)

    async def ModelInfer(self, request: service_pb2.ModelInferRequest) -> service_pb2.ModelInferResponse:  # noqa: N802
        """Run the model."""
        tensor = request.inputs[0]
        features = np.frombuffer(request.raw_input_contents[0], np.float32)
        response = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
        for name, value in self._model(features.reshape(tensor.shape)).items():
            response.outputs.add(name=name, datatype=DATATYPES[value.dtype.name], shape=value.shape)
            response.raw_output_contents.append(value.tobytes())
        return response
