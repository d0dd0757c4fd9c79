"""Events that are written in Avro, from records to rows and rejections."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping

import orjson
import pytest
from tests.support.avro import framed, text
from tests.unit.ingestion.test_judge_batch import DATASETS, ENVELOPE, opened, sent

from headrace.ingestion.domain.avro import UnusableSchema
from headrace.ingestion.use_cases.judge_batch import Judge, Judged
from headrace.ingestion.use_cases.ports import RegisteredSchema

AVRO = list({**ENVELOPE, "content-type": b"application/avro"}.items())


def schema(*fields: tuple[str, str]) -> RegisteredSchema:
    declared = [{"name": name, "type": node} for name, node in fields]
    return RegisteredSchema("AVRO", json.dumps({"type": "record", "name": "R", "fields": declared}))


FIRST = schema(("id", "string"), ("a", "float"))
SECOND = schema(("a", "double"), ("more", "string"), ("id", "string"))
SCHEMAS = {1: FIRST, 2: SECOND}


def first(key: str, a: float) -> bytes:
    return framed(1, text(key.encode()) + struct.pack("<f", a))


def judge(
    *payloads: bytes | None,
    headers: list[tuple[str, bytes]] = AVRO,
    schemas: Mapping[int, RegisteredSchema] | None = SCHEMAS,
) -> Judged:
    batch = opened([sent(offset, payload, headers) for offset, payload in enumerate(payloads)])
    return Judge().judge("cluster", batch, DATASETS, schemas)


def rejected(judged: Judged) -> list[tuple[int, str, str]]:
    return [(r.offset, r.verdict.reason.value, r.verdict.rule) for r in judged.rejections]


@pytest.mark.parametrize(
    "content_type",
    ["application/avro", "application/vnd.apache.avro", "avro/binary", "Application/Avro; v=1"],
)
def test_each_event_is_read_by_the_schema_of_its_writer(content_type: str) -> None:
    headers = list({**ENVELOPE, "content-type": content_type.encode()}.items())
    second = framed(2, struct.pack("<d", 2.5) + text(b"x") + text(b"q"))
    judged = judge(first("p", 1.5), second, first("r", 0.5), headers=headers)
    rows = judged.rows["known"].select(["id", "a", "y", "_offset"]).sort_by("_offset").to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("p", 1.5, None, 0),
        ("q", 2.5, None, 1),
        ("r", 0.5, None, 2),
    ]
    assert rejected(judged) == []


def test_a_structured_event_may_have_avro_in_base64() -> None:
    envelope = {name.removeprefix("ce_"): value.decode() for name, value in ENVELOPE.items() if "ce_" in name}
    envelope |= {
        "datacontenttype": "application/avro",
        "data_base64": base64.b64encode(first("p", 1.5)).decode(),
    }
    judged = judge(orjson.dumps(envelope), headers=[("content-type", b"application/cloudevents+json")])
    assert judged.rows["known"].column("id").to_pylist() == ["p"]


def test_a_bad_event_costs_no_neighbour_its_row() -> None:
    judged = judge(b'{"id": "p"}', first("p", 1.5), first("", 1.5), None, framed(9, b""), framed(1, b"\1"))
    assert judged.rows["known"].column("_offset").to_pylist() == [1]
    assert sorted(rejected(judged)) == [
        (0, "MALFORMED_PAYLOAD", "framing"),
        (2, "SCHEMA_VIOLATION", "not_empty"),
        (3, "MALFORMED_PAYLOAD", "framing"),
        (4, "SCHEMA_UNKNOWN", "schema_id"),
        (5, "MALFORMED_PAYLOAD", "avro"),
    ]


def test_without_a_registry_no_schema_is_known() -> None:
    judged = judge(first("p", 1.5), b"x", schemas=None)
    assert rejected(judged) == [(0, "SCHEMA_UNKNOWN", "registry"), (1, "MALFORMED_PAYLOAD", "framing")]
    assert "HEADRACE_INGESTION_SCHEMA_REGISTRY_URL" in judged.rejections[0].verdict.message


@pytest.mark.parametrize(
    ("registered", "rule", "words"),
    [
        (RegisteredSchema("JSON", "{}"), "avro", "schema 1 is one of JSON"),
        (RegisteredSchema("AVRO", '"string"'), "record", "schema 1 describes no record"),
        (
            RegisteredSchema("AVRO", "{}", unusable=UnusableSchema("references", "refers to more than 100")),
            "references",
            "schema 1 refers to more than 100",
        ),
        (RegisteredSchema("AVRO", FIRST.definition, ("{",)), "avro", "schema 1 is no Avro schema"),
    ],
)
def test_a_schema_that_cannot_be_used_rejects_its_events(
    registered: RegisteredSchema, rule: str, words: str
) -> None:
    judged = judge(first("p", 1.5), schemas={1: registered})
    assert rejected(judged) == [(0, "SCHEMA_UNUSABLE", rule)]
    assert words in judged.rejections[0].verdict.message
