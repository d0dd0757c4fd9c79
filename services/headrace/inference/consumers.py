"""Events to use cases."""

from __future__ import annotations

from collections.abc import Callable

from opentelemetry import trace

from headrace.events.inference.v1 import events_pb2 as inference_events
from headrace.events.registry.v1 import events_pb2 as registry_events
from headrace.inference.messages import served_version_from
from headrace.inference.use_cases.ports import LoggedPrediction
from headrace.inference.use_cases.production import Production
from headrace.messaging.consumer import PermanentFailure
from headrace.messaging.events import Event, MalformedPayload, parse
from headrace.rpc.convert import from_timestamp
from headrace.telemetry import names

PROMOTED = "headrace.registry.model-version-promoted.v1"
MODEL_FILE = "model.onnx"
# The output that feedback is compared with: a classifier's answer, else the first one that there is.
ANSWER = "label"


class Consumers:
    """One handler for each topic."""

    def __init__(self, production: Production, promoted: Callable[[], None]) -> None:
        self._production = production
        self._promoted = promoted

    async def model_versions(self, event: Event) -> None:
        """`registry.model-versions`: promoted versions are served, the others are the registry's matter."""
        if event.type != PROMOTED:
            return
        try:
            message = parse(event, registry_events.ModelVersionPromoted).model_version
        except MalformedPayload as error:
            raise PermanentFailure("MALFORMED_PAYLOAD", str(error)) from error
        for artifact in message.artifacts:
            if artifact.path == MODEL_FILE:
                version = served_version_from(message, artifact)
                if await self._production.version_promoted(event.id, version):
                    self._promoted()
                return
        raise PermanentFailure("ARTIFACT_MISSING", f"version {message.version} has no {MODEL_FILE}")

    async def predictions(self, event: Event) -> None:
        """`inference.predictions`: the log."""
        try:
            message = parse(event, inference_events.Prediction)
        except MalformedPayload as error:
            raise PermanentFailure("MALFORMED_PAYLOAD", str(error)) from error
        trace.get_current_span().set_attribute(names.PREDICTION_ID, message.prediction_id)
        outputs = {tensor.name: _tensor(tensor) for tensor in message.outputs}
        await self._production.predicted(
            LoggedPrediction(
                event_id=event.id,
                prediction_id=message.prediction_id,
                deployment=message.deployment,
                version=message.version,
                time=from_timestamp(message.time),
                seconds=message.seconds,
                inputs={tensor.name: _tensor(tensor) for tensor in message.inputs},
                outputs=outputs,
                answer=_answer(list(message.outputs)),
                traceparent=event.traceparent,
            )
        )

    async def feedback(self, event: Event) -> None:
        """`inference.feedback`: true labels."""
        try:
            message = parse(event, inference_events.Feedback)
        except MalformedPayload as error:
            raise PermanentFailure("MALFORMED_PAYLOAD", str(error)) from error
        kind = message.WhichOneof("label")
        if not message.deployment or not message.prediction_id or kind is None:
            raise PermanentFailure(
                "INVALID_FEEDBACK", "feedback names a deployment, a prediction_id and a number or text"
            )
        label = message.number if kind == "number" else message.text
        await self._production.labelled(
            event.id, message.deployment, message.prediction_id, label, event.time
        )


def _tensor(tensor: inference_events.Tensor) -> dict[str, object]:
    data: list[float] | list[str] = list(tensor.numbers) or list(tensor.strings)
    return {"datatype": tensor.datatype, "shape": list(tensor.shape), "data": data}


def _answer(outputs: list[inference_events.Tensor]) -> float | None:
    """The answer to a request for one row, as a number; None for several rows, or none that is a number."""
    for tensor in sorted(outputs, key=lambda tensor: tensor.name != ANSWER):
        if len(tensor.numbers) == 1:
            return tensor.numbers[0]
    return None
