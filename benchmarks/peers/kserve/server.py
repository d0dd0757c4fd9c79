"""KServe's model server with one ONNX model: server.py NAME MODEL GRPC_PORT HTTP_PORT."""

import sys

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer, model_server
from kserve.protocol.rest.server import RESTServer
from onnx_model import OnnxModel

DATATYPES = {"float32": "FP32", "int64": "INT64"}


class LoopbackRest(RESTServer):
    """Its REST server listens on every address, and has no setting for it."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.config.host = "127.0.0.1"


class Served(Model):
    """Answers in the Open Inference Protocol."""

    def __init__(self, name, path):
        super().__init__(name)
        self._model = OnnxModel(path)
        self.ready = True

    def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        """Run the model."""
        outputs = []
        for name, value in self._model(payload.inputs[0].as_numpy()).items():
            output = InferOutput(name, list(value.shape), DATATYPES[value.dtype.name])
            output.set_data_from_numpy(value)
            outputs.append(output)
        return InferResponse(payload.id, self.name, outputs)


if __name__ == "__main__":
    name, path, grpc_port, http_port = sys.argv[1:]
    model_server.RESTServer = LoopbackRest
    server = ModelServer(
        http_port=int(http_port), grpc_port=int(grpc_port), workers=1, enable_latency_logging=False
    )
    server.start([Served(name, path)])
