"""Which rejected events are a subject's."""

from __future__ import annotations

import json
from collections.abc import Sequence

import orjson

from headrace.events.ingestion.v1.events_pb2 import Value
from headrace.ingestion.domain.avro import AvroReader, Unreadable, avro_string
from headrace.ingestion.domain.columnar import Malformed, parse_object
from headrace.ingestion.domain.framing import UNFRAMED, schema_ids, unframed
from headrace.ingestion.domain.protobuf import ProtobufReader
from headrace.ingestion.domain.rejection import Rejection
from headrace.ingestion.domain.schema import Schema
from headrace.ingestion.use_cases.judge_batch import parse_sample, writer_of
from headrace.ingestion.use_cases.ports import SchemaRegistry
from headrace.messaging.events import InvalidCloudEvent, in_binary_mode
from headrace.native import Spans


class RecogniseSubject:
    """The use case. What an event says of its format is not asked: it may be what it was rejected for."""

    def __init__(self, registry: SchemaRegistry | None) -> None:
        """`registry` knows the schemas of Avro and Protobuf events; None: those cannot be read."""
        self._registry = registry

    async def __call__(
        self, rejections: Sequence[Rejection], schema: Schema, subject: str
    ) -> Sequence[Rejection]:
        """Those that are the subject's, of rejected events that are not sealed.

        They are by Kafka's key, or by their own. One that cannot be read, or has no key, is the subject's
        where that stands in its bytes, as one of the formats writes it: rather one too many than one too few.
        So are record batches that cannot be read: what is in them nobody knows.
        Raises Unavailable SCHEMA_REGISTRY_UNAVAILABLE: to pass over one that cannot be read today is no way.
        """
        payloads = Spans.of(b"" if rejection.is_batch else _payload(rejection) for rejection in rejections)
        ids = schema_ids(payloads)
        known = await self._registry.schemas({*ids.tolist()} - {UNFRAMED}) if self._registry else {}
        writers = {
            schema_id: writer_of(registered, schema, registered.format)
            for schema_id, registered in known.items()
        }
        records = unframed(payloads)
        spellings = _spellings(subject)
        found = []
        for index, rejection in enumerate(rejections):
            writer = writers.get(int(ids[index]))
            sample = (
                writer.read(records[index])
                if isinstance(writer, AvroReader | ProtobufReader)
                else _sample(payloads[index], schema.key)
            )
            if rejection.is_batch or rejection.key == subject.encode():
                found.append(rejection)
            elif isinstance(sample, Unreadable) or sample.get(schema.key) is None:
                if any(spelling in payloads[index] for spelling in spellings):
                    found.append(rejection)
            elif _as_text(sample[schema.key]) == subject:
                found.append(rejection)
        return found


def _payload(rejection: Rejection) -> bytes:
    try:
        return in_binary_mode(rejection.headers, rejection.payload)[1]
    except InvalidCloudEvent:
        return rejection.payload


def _sample(payload: bytes, key: str) -> dict[str, object] | Unreadable:
    """A sample with a key, in JSON or Protobuf."""
    for parse in (parse_object, parse_sample):
        sample = parse(payload)
        if not isinstance(sample, Malformed) and key in sample:
            return sample
    return Unreadable("it has no key")


def _as_text(key: object) -> str | None:
    """A key whose type may be what is wrong with the event."""
    if isinstance(key, bytes):
        return key.decode(errors="replace")
    return str(key) if isinstance(key, str | int) and not isinstance(key, bool) else None


def _spellings(subject: str) -> Sequence[bytes]:
    """A text as JSON writes it, with escapes and without, Protobuf, and Avro."""
    return (
        orjson.dumps(subject),
        json.dumps(subject).encode(),
        # Behind a field's number, which may be any.
        Value(string_value=subject).SerializeToString()[1:],
        avro_string(subject),
    )
