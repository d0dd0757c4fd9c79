"""Prediction events to entries of the log.

Nearly all come from the Triton runtime, as JSON, many in a second. They are read straight from JSON, several
times faster than through Protobuf; whatever does not look like the runtime's own goes through the schema,
which says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import orjson

from headrace.events.inference.v1 import events_pb2
from headrace.inference.domain.deployments import ANSWER
from headrace.inference.domain.quality import MAX_ID_BYTES, MAX_SEGMENT_BYTES
from headrace.inference.use_cases.ports import LoggedPrediction
from headrace.messaging.events import JSON, Event, MalformedPayload, parse
from headrace.rpc.convert import from_timestamp

# Whoever is named by a longer text could not be erased.
MAX_SUBJECT_LENGTH = 4096
_RUNTIME = "headrace/triton"
# PostgreSQL's text and jsonb take no such character.
_NUL = b"\\u0000"

Tensors = Mapping[str, Mapping[str, object]]


def parse_prediction(event: Event) -> LoggedPrediction:
    """Read a prediction. Raises MalformedPayload."""
    if _NUL in event.data:
        raise MalformedPayload("text with the character U+0000 cannot be stored")
    prediction = _parsed(event)
    _check_lengths(prediction)
    if len(prediction.subject) > MAX_SUBJECT_LENGTH:
        raise MalformedPayload(f"subject is longer than {MAX_SUBJECT_LENGTH} characters")
    return prediction


def _check_lengths(prediction: LoggedPrediction) -> None:
    """Raises MalformedPayload for texts that are too long to be found again, or to be told apart."""
    for what, text, limit in (
        ("deployment", prediction.deployment, MAX_ID_BYTES),
        ("prediction_id", prediction.prediction_id, MAX_ID_BYTES),
        ("segment", prediction.segment, MAX_SEGMENT_BYTES),
    ):
        if len(text.encode()) > limit:
            raise MalformedPayload(f"{what} is longer than {limit} bytes")


def _parsed(event: Event) -> LoggedPrediction:
    if event.source == _RUNTIME and event.content_type == JSON:
        try:
            return _read(event)
        except (KeyError, TypeError, ValueError, AttributeError):
            pass
    message = parse(event, events_pb2.Prediction)
    outputs = {tensor.name: _tensor(tensor) for tensor in message.outputs}
    return LoggedPrediction(
        event_id=event.id,
        prediction_id=message.prediction_id,
        deployment=message.deployment,
        version=message.version,
        time=from_timestamp(message.time),
        seconds=message.seconds,
        inputs={tensor.name: _tensor(tensor) for tensor in message.inputs},
        outputs=outputs,
        answer=_answer(outputs),
        traceparent=event.traceparent,
        subject=message.subject,
        shadow=message.shadow,
        mirror_id=message.mirror_id,
        segment=message.segment,
    )


def _read(event: Event) -> LoggedPrediction:
    document = orjson.loads(event.data)
    outputs = {tensor["name"]: _plain(tensor) for tensor in document["outputs"]}
    return LoggedPrediction(
        event_id=event.id,
        prediction_id=_text(document["prediction_id"]),
        deployment=_text(document["deployment"]),
        version=int(document["version"]),
        time=datetime.fromisoformat(document["time"]),
        seconds=float(document["seconds"]),
        inputs={tensor["name"]: _plain(tensor) for tensor in document["inputs"]},
        outputs=outputs,
        answer=_answer(outputs),
        traceparent=event.traceparent,
        subject=_text(document.get("subject", "")),
        shadow=document.get("shadow") is True,
        mirror_id=_text(document.get("mirror_id", "")),
        segment=_text(document.get("segment", "")),
    )


def _plain(tensor: Mapping[str, object]) -> dict[str, object]:
    return {
        "datatype": tensor["datatype"],
        "shape": tensor["shape"],
        "data": tensor.get("numbers") or tensor.get("strings") or [],
    }


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


def _tensor(tensor: events_pb2.Tensor) -> dict[str, object]:
    data: list[float] | list[str] = list(tensor.numbers) or list(tensor.strings)
    return {"datatype": tensor.datatype, "shape": list(tensor.shape), "data": data}


def _answer(outputs: Tensors) -> float | None:
    """The answer to a request for one row, as a number; None for several rows, or none that is a number."""
    for name in sorted(outputs, key=lambda name: name != ANSWER):
        data = outputs[name]["data"]
        if isinstance(data, list) and len(data) == 1 and isinstance(data[0], int | float):
            return float(data[0])
    return None
