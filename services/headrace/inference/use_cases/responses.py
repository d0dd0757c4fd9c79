"""The response of a request: the event that tells how it ended."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from headrace.inference.domain.requests import Failure, RequestKey
from headrace.inference.use_cases.request_ports import Answer, Payloads, Protocols, Record
from headrace.messaging.events import JSON, PROTOBUF, Event, encode, media_type

ANSWERED: Final = "headrace.inference.response.v1"
FAILED: Final = "headrace.inference.request-failed.v1"
_SOURCE: Final = "headrace/inference"
# Ids of responses are names within this one.
_NAMESPACE: Final = uuid.UUID("6f6c6f1c-9d0f-4f55-9d4d-0f8c8e4a2b17")


@dataclass(frozen=True, slots=True)
class Envelope:
    """Where a response goes, and what it says of its request."""

    key: RequestKey
    deployment: str
    topic: str
    partition_key: str
    content_type: str
    traceparent: str
    replays: int


class ResponseWriter:
    """Makes responses. The same run of a request always has a response of the same `ce_id`."""

    def __init__(self, protocols: Protocols, payloads: Payloads) -> None:
        self._protocols = protocols
        self._payloads = payloads

    async def answered(self, envelope: Envelope, answer: Answer, time: datetime) -> Record:
        """The response with an answer. Raises Unavailable where a large one cannot be put into the store."""
        event = _event(envelope, ANSWERED, answer.payload, time)
        return _record(envelope, await self._payloads.fitting(event))

    def failed(self, envelope: Envelope, failure: Failure, attempts: int, time: datetime) -> Record:
        """The response that says why there is no answer."""
        payload = self._protocols.failure(failure, attempts, envelope.content_type)
        return _record(envelope, _event(envelope, FAILED, payload, time))


def _event(envelope: Envelope, kind: str, payload: bytes, time: datetime) -> Event:
    key = envelope.key
    return Event(
        id=str(uuid.uuid5(_NAMESPACE, f"{key.source} {key.id} {envelope.replays}")),
        source=_SOURCE,
        type=kind,
        subject=envelope.deployment,
        time=time,
        data=payload,
        content_type=JSON if media_type(envelope.content_type) == JSON else PROTOBUF,
        traceparent=envelope.traceparent,
        extensions={"requestid": key.id, "requestsource": key.source, "partitionkey": envelope.partition_key},
    )


def _record(envelope: Envelope, event: Event) -> Record:
    headers, value = encode(event)
    return Record(envelope.topic, envelope.partition_key, headers, value)
