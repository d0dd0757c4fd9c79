"""Whose a rejected event is, whatever it was written in, and whatever is wrong with it."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Collection, Mapping
from dataclasses import replace

import orjson
import pytest
from tests.support.avro import framed, text
from tests.support.protobuf import FIRST_MESSAGE, message, registered
from tests.unit.ingestion.test_privacy import SCHEMA, rejection

from headrace.errors import Unavailable
from headrace.events.ingestion.v1.events_pb2 import Sample, Value
from headrace.ingestion.domain.rejection import Rejection
from headrace.ingestion.use_cases.ports import RegisteredSchema
from headrace.ingestion.use_cases.recognise_subject import RecogniseSubject

SUBJECT = "subject-4711"
WRITER = RegisteredSchema(
    "AVRO",
    json.dumps(
        {
            "type": "record",
            "name": "Person",
            "fields": [{"name": "note", "type": "string"}, {"name": "id", "type": ["null", "string"]}],
        }
    ),
)


MESSAGES = registered('syntax = "proto3"; message Person { string note = 16; optional string id = 1; }')


class Registry:
    """One that knows one schema, or does not answer."""

    def __init__(self, *, away: bool = False) -> None:
        self._away = away

    async def schemas(self, ids: Collection[int]) -> Mapping[int, RegisteredSchema]:
        if self._away and ids:
            raise Unavailable("SCHEMA_REGISTRY_UNAVAILABLE", "the schema registry does not answer")
        known = {7: WRITER, 8: MESSAGES}
        return {schema_id: known[schema_id] for schema_id in ids if schema_id in known}


def event(payload: bytes, key: bytes = b"", **headers: bytes) -> Rejection:
    return rejection(payload=payload, key=key, headers=list(headers.items()))


async def recognised(
    *events: Rejection, registry: Registry | None = None, subject: str = SUBJECT
) -> list[int]:
    numbered = [replace(each, id=number) for number, each in enumerate(events)]
    return [each.id for each in await RecogniseSubject(registry)(numbered, SCHEMA, subject)]


def in_avro(note: str, who: str | None, schema_id: int = 7) -> bytes:
    return framed(schema_id, text(note.encode()) + (b"\0" if who is None else b"\2" + text(who.encode())))


def in_protobuf(who: str) -> bytes:
    return Sample(fields={"id": Value(string_value=who)}).SerializeToString()


def in_message(note: str, who: str, schema_id: int = 8) -> bytes:
    text = f'note: "{note}"' + (f' id: "{who}"' if who else "")
    return framed(schema_id, FIRST_MESSAGE + message(MESSAGES, "Person", text))


async def test_a_message_is_read_by_its_writers_schema() -> None:
    events = [
        event(in_message("", SUBJECT)),
        event(in_message(SUBJECT, "other")),
        event(in_message("", "other")),
        # Without a key, or by an unknown schema: where the subject stands in its bytes, it is the subject's.
        event(in_message(SUBJECT, "")),
        event(in_message("", "")),
        event(in_message("x", SUBJECT, schema_id=9)),
        event(in_message(SUBJECT, "other", schema_id=9)),
        event(in_message("x", "other", schema_id=9)),
    ]
    assert await recognised(*events, registry=Registry()) == [0, 3, 5, 6]


async def test_an_event_is_that_of_its_key() -> None:
    about = orjson.dumps({"id": "other", "email": SUBJECT})
    structured = orjson.dumps({"specversion": "1.0", "data": {"id": SUBJECT}})
    events = [
        event(orjson.dumps({"id": SUBJECT, "a": -1})),
        event(about),
        event(about, key=SUBJECT.encode()),
        event(in_protobuf(SUBJECT)),
        event(in_protobuf("other")),
        event(in_avro("", SUBJECT)),
        event(in_avro(SUBJECT, "other")),
        event(structured, **{"content-type": b"application/cloudevents+json"}),
    ]
    assert await recognised(*events, registry=Registry()) == [0, 2, 3, 5, 7]


async def test_a_key_of_another_type_is_the_subjects_all_the_same() -> None:
    assert await recognised(event(b'{"id":4711}'), event(b'{"id":true}'), subject="4711") == [0]
    binary = Sample(fields={"id": Value(bytes_value=SUBJECT.encode())}).SerializeToString()
    assert await recognised(event(binary)) == [0]


@pytest.mark.parametrize("subject", [SUBJECT, "Müller", 'a "b"', "x" * 300])
async def test_one_that_cannot_be_read_is_the_subjects_if_that_stands_in_it(subject: str) -> None:
    broken = [
        b"{" + orjson.dumps(subject),
        b"{" + json.dumps(subject).encode(),
        in_protobuf(subject) + b"\7",
        # Of a schema that nobody knows, cut off, without a key, and in base64 of a structured event.
        in_avro("", subject, schema_id=8),
        in_avro("", subject) + b"?",
        in_avro(subject, None),
    ]
    structured = {"specversion": "1.0", "data_base64": base64.b64encode(in_avro("", subject, 8)).decode()}
    events = [
        *map(event, broken),
        event(orjson.dumps(structured), **{"content-type": b"application/cloudevents+json"}),
    ]
    assert await recognised(*events, registry=Registry(), subject=subject) == list(range(len(events)))
    assert await recognised(*events, registry=Registry(), subject="somebody else") == []


async def test_without_a_registry_avro_is_looked_at_by_its_bytes() -> None:
    events = [event(in_avro("", SUBJECT)), event(in_avro("", "other")), event(struct.pack(">bI", 0, 7))]
    assert await recognised(*events) == [0]


async def test_a_registry_that_is_away_decides_nothing() -> None:
    with pytest.raises(Unavailable):
        await recognised(event(in_avro("", SUBJECT)), registry=Registry(away=True))
    # It is not asked about anything else.
    assert await recognised(event(b'{"id":"other"}'), registry=Registry(away=True)) == []


async def test_a_record_batch_that_cannot_be_read_is_whoever_asks() -> None:
    # It begins with its offset, as a payload does with its schema's id: nobody is asked for that.
    batch = replace(event(bytes(61)), next_offset=7)
    assert await recognised(batch, event(b'{"id": "other"}'), registry=Registry(away=True)) == [0]
