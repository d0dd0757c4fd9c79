"""Prediction events to entries of the log.

Nearly all come from the Triton runtime, as JSON, many in a second. They are read straight from JSON, several
times faster than through Protobuf; whatever does not look like the runtime's own goes through the schema,
which says what is wrong with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import orjson
from google.protobuf import json_format

from headrace.events.inference.v1 import events_pb2
from headrace.inference.domain.deployments import ANSWER
from headrace.inference.domain.quality import MAX_ID_BYTES, MAX_SEGMENT_BYTES
from headrace.inference.use_cases.ports import LoggedPrediction
from headrace.messaging.events import JSON, Event, MalformedPayload, parse

PREDICTION_BATCH: Final = "headrace.inference.prediction-batch.v1"
# Whoever is named by a longer text could not be erased.
MAX_SUBJECT_LENGTH = 4096
_RUNTIME = "headrace/triton"
# PostgreSQL's text and jsonb take no such character.
_NUL = b"\\u0000"

Document = Mapping[str, Any]
Tensors = Mapping[str, Mapping[str, Any]]


class _Common(NamedTuple):
    """What all predictions of an event have."""

    deployment: str
    version: int
    time: datetime
    seconds: float


def parse_predictions(event: Event) -> Sequence[LoggedPrediction]:
    """Read an event's prediction, or those of its batch. Raises MalformedPayload."""
    if _NUL in event.data:
        raise MalformedPayload("text with the character U+0000 cannot be stored")
    predictions = _parsed(event)
    for prediction in predictions:
        _check_lengths(prediction)
    return predictions


def _check_lengths(prediction: LoggedPrediction) -> None:
    """Raises MalformedPayload for texts that are too long to be found again, or to be told apart."""
    for what, text, limit in (
        ("deployment", prediction.deployment, MAX_ID_BYTES),
        ("prediction_id", prediction.prediction_id, MAX_ID_BYTES),
        ("segment", prediction.segment, MAX_SEGMENT_BYTES),
    ):
        if len(text.encode()) > limit:
            raise MalformedPayload(f"{what} is longer than {limit} bytes")
    if len(prediction.subject) > MAX_SUBJECT_LENGTH:
        raise MalformedPayload(f"subject is longer than {MAX_SUBJECT_LENGTH} characters")


def _parsed(event: Event) -> Sequence[LoggedPrediction]:
    read = _batch if event.type == PREDICTION_BATCH else _single
    if event.source == _RUNTIME and event.content_type == JSON:
        try:
            return read(event, orjson.loads(event.data))
        except (KeyError, TypeError, ValueError, AttributeError):
            pass
    kind = events_pb2.PredictionBatch if event.type == PREDICTION_BATCH else events_pb2.Prediction
    document = json_format.MessageToDict(
        parse(event, kind), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return read(event, document)


def _single(event: Event, document: Document) -> Sequence[LoggedPrediction]:
    inputs, outputs = _tensors(document["inputs"]), _tensors(document["outputs"])
    return [_prediction(event.id, _common(document), document, inputs, outputs, event.traceparent)]


def _batch(event: Event, document: Document) -> Sequence[LoggedPrediction]:
    requests = document["requests"]
    common = _common(document)
    rows = [int(request["rows"]) for request in requests]
    inputs, outputs = (_split(_tensors(document[name]), rows) for name in ("inputs", "outputs"))
    return [
        _prediction(f"{event.id}-{place}", common, request, asked, answered, request.get("traceparent", ""))
        for place, (request, asked, answered) in enumerate(zip(requests, inputs, outputs, strict=True))
    ]


def _common(document: Document) -> _Common:
    return _Common(
        _text(document["deployment"]),
        int(document["version"]),
        datetime.fromisoformat(document["time"]),
        float(document["seconds"]),
    )


def _prediction(
    event_id: str, common: _Common, request: Document, inputs: Tensors, outputs: Tensors, traceparent: str
) -> LoggedPrediction:
    return LoggedPrediction(
        event_id=event_id,
        prediction_id=_text(request["prediction_id"]),
        deployment=common.deployment,
        version=common.version,
        time=common.time,
        seconds=common.seconds,
        inputs=inputs,
        outputs=outputs,
        answer=_answer(outputs),
        traceparent=_text(traceparent),
        subject=_text(request.get("subject", "")),
        shadow=request.get("shadow") is True,
        mirror_id=_text(request.get("mirror_id", "")),
        segment=_text(request.get("segment", "")),
    )


def _tensors(written: Sequence[Document]) -> Tensors:
    return {
        tensor["name"]: {
            "datatype": tensor["datatype"],
            # JSON writes Protobuf's large integers as texts.
            "shape": [int(size) for size in tensor["shape"]],
            "data": tensor.get("numbers") or tensor.get("strings") or [],
        }
        for tensor in written
    }


def _split(tensors: Tensors, rows: Sequence[int]) -> Sequence[Tensors]:
    """Each request's own rows. Raises MalformedPayload where they are not those of all requests."""
    if min(rows, default=0) < 0:
        raise MalformedPayload("a request has fewer than no rows")
    own: list[dict[str, Mapping[str, Any]]] = [{} for _ in rows]
    for name, tensor in tensors.items():
        shape, data = tensor["shape"], tensor["data"]
        if not shape or shape[0] != sum(rows) or len(data) != math.prod(shape):
            raise MalformedPayload(f"tensor {name} does not have the rows of its requests")
        elements, datatype, first = math.prod(shape[1:]), tensor["datatype"], 0
        # Nobody changes them: one for all requests of a size.
        shapes = {count: [count, *shape[1:]] for count in set(rows)}
        for request, count in zip(own, rows, strict=True):
            behind = first + count * elements
            request[name] = {"datatype": datatype, "shape": shapes[count], "data": data[first:behind]}
            first = behind
    return own


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


def _answer(outputs: Tensors) -> float | None:
    """The answer to a request for one row, as a number; None for several rows, or none that is a number."""
    for name in (ANSWER, *outputs):
        data = outputs[name]["data"] if name in outputs else None
        if isinstance(data, list) and len(data) == 1 and isinstance(data[0], int | float):
            return float(data[0])
    return None
