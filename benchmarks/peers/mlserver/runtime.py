"""MLServer's runtime for one ONNX model; its settings are environment variables."""

from mlserver import MLModel, types
from mlserver.codecs import NumpyCodec
from onnx_model import OnnxModel


class Served(MLModel):
    """Answers in the Open Inference Protocol."""

    async def load(self) -> bool:
        """Load the model."""
        self._model = OnnxModel(self.settings.parameters.uri)
        return True

    async def predict(self, payload: types.InferenceRequest) -> types.InferenceResponse:
        """Run the model."""
        answer = self._model(NumpyCodec.decode_input(payload.inputs[0]))
        outputs = [NumpyCodec.encode_output(name, value) for name, value in answer.items()]
        return types.InferenceResponse(model_name=self.name, id=payload.id, outputs=outputs)
