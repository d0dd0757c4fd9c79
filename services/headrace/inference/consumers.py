"""Events to use cases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from opentelemetry import trace

from headrace.errors import InvalidArgument, NotFound
from headrace.events.inference.v1 import events_pb2 as inference_events
from headrace.events.registry.v1 import events_pb2 as registry_events
from headrace.inference.domain.quality import label_fault
from headrace.inference.messages import served_version_from
from headrace.inference.prediction_events import parse_predictions
from headrace.inference.use_cases.ports import LoggedPrediction, TrueLabel
from headrace.inference.use_cases.production import Production
from headrace.inference.use_cases.submit_feedback import INVALID_FEEDBACK
from headrace.messaging.consumer import PermanentFailure
from headrace.messaging.events import Event, MalformedPayload, parse
from headrace.telemetry import names

PROMOTED = "headrace.registry.model-version-promoted.v1"


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
        try:
            version = served_version_from(message)
        except (InvalidArgument, NotFound) as error:
            raise PermanentFailure(error.reason, error.message) from error
        if await self._production.version_promoted(event, version):
            self._promoted()

    async def predictions(self, event: Event) -> None:
        """`inference.predictions`: the log."""
        predictions = predictions_from(event)
        if len(predictions) == 1:
            trace.get_current_span().set_attribute(names.PREDICTION_ID, predictions[0].prediction_id)
        stored = await asyncio.gather(*map(self._production.predicted, predictions), return_exceptions=True)
        # One that cannot be stored sets the event aside, and takes none of the others along.
        for failure in stored:
            if isinstance(failure, BaseException):
                raise failure

    async def predictions_together(self, events: Sequence[Event]) -> None:
        """The same of several at once."""
        predictions = [prediction for event in events for prediction in predictions_from(event)]
        await self._production.predicted_together(predictions)

    async def feedback(self, event: Event) -> None:
        """`inference.feedback`: true labels."""
        await self._production.labelled(_label(event))

    async def feedback_together(self, events: Sequence[Event]) -> None:
        """The same of several at once."""
        await self._production.labelled_together(list(map(_label, events)))


def predictions_from(event: Event) -> Sequence[LoggedPrediction]:
    """Read an event's predictions. Raises PermanentFailure."""
    try:
        return parse_predictions(event)
    except MalformedPayload as error:
        raise PermanentFailure("MALFORMED_PAYLOAD", str(error)) from error


def _label(event: Event) -> TrueLabel:
    try:
        message = parse(event, inference_events.Feedback)
    except MalformedPayload as error:
        raise PermanentFailure("MALFORMED_PAYLOAD", str(error)) from error
    kind = message.WhichOneof("label")
    label = None if kind is None else message.number if kind == "number" else message.text
    if fault := label_fault(message.deployment, message.prediction_id, label):
        raise PermanentFailure(INVALID_FEEDBACK, " ".join(fault))
    assert label is not None
    return TrueLabel(message.deployment, message.prediction_id, label, event.time)
