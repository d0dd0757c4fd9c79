"""Personal fields and rejected events that may hold some: covered, and never told in clear."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.records import Sent, records_of

from headrace.errors import DataLoss, FailedPrecondition, HeadraceError, InvalidArgument
from headrace.events.ingestion.v1.events_pb2 import Sample, Value
from headrace.ingestion.domain.columnar import ColumnReader
from headrace.ingestion.domain.content_hash import hash_rows
from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.domain.evolution import changes_values, check_evolution
from headrace.ingestion.domain.key_ring import NO_KEYS, Key, KeyRing, parse_keys
from headrace.ingestion.domain.profile import extended
from headrace.ingestion.domain.rejection import Reason, Rejection, Verdict
from headrace.ingestion.domain.schema import (
    Cut,
    Field,
    FieldType,
    Role,
    Schema,
    Treatment,
    check_schema,
)
from headrace.ingestion.domain.sealing import seal, unsealed
from headrace.ingestion.domain.treatment import Treatments, revealed
from headrace.ingestion.rejected_events import rejected_event
from headrace.ingestion.use_cases.envelopes import open_envelopes
from headrace.ingestion.use_cases.judge_batch import Judge, Judged, parse_sample
from headrace.messaging.attributes import read_attributes
from headrace.native import Spans

NOW = datetime(2026, 1, 2, tzinfo=UTC)
OLD, NEW = Key("k1", b"1" * 32), Key("k2", b"2" * 32)
RING = KeyRing((OLD, NEW))
SECRET = "ada@example.org"


def personal(name: str, treatment: Treatment | None, kind: FieldType = FieldType.STRING) -> Field:
    return Field(name, kind, nullable=True, role=Role.PERSONAL, treatment=treatment)


SCHEMA = Schema(
    "id",
    (Field("a", FieldType.FLOAT32, min=0, max=10),),
    Field("y", FieldType.INT8, allowed_values=(0, 1)),
    attributes=(
        personal("email", Treatment.PSEUDONYMISE),
        personal("phone", Treatment.ENCRYPT),
        personal("street", None),
        personal("born", Treatment.ENCRYPT, FieldType.TIMESTAMP),
        personal("income", Treatment.PSEUDONYMISE, FieldType.INT32),
        Field("site", FieldType.STRING, nullable=True, pattern="^[A-Z]+$", role=Role.IGNORED),
    ),
)
DATASET = Dataset("people", SCHEMA, Cut(), 1, NOW, NOW)


def judged(*values: dict[str, object], keys: KeyRing = RING) -> Judged:
    sample = {"id": "p1", "a": 1.5, "y": 1}
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_source", b"tests"),
        ("ce_type", b"headrace.ingestion.sample.v1"),
        ("ce_subject", b"people"),
        ("ce_time", b"2026-01-02T03:04:05Z"),
        ("content-type", b"application/json"),
    ]
    records = records_of(
        Sent(offset, orjson.dumps({**sample, **value}), [*headers, ("ce_id", b"%d" % offset)])
        for offset, value in enumerate(values)
    )
    opened = open_envelopes(records, read_attributes(records), {}, 1 << 20)
    return Judge(keys).judge("cluster", opened, {"people": DATASET})


def stored(*values: dict[str, object], keys: KeyRing = RING) -> pa.Table:
    rows = judged(*values, keys=keys).rows["people"]
    assert rows.num_rows == len(values)
    return rows


def test_each_treatment_stores_what_it_says_and_nothing_else() -> None:
    person = {"email": SECRET, "phone": "+4412345", "street": "Elm St 7", "born": "1990-05-06T00:00:00Z"}
    rows = stored({**person, "income": 54321}, {"email": SECRET, "phone": "+4412345"}, {})
    assert "street" not in rows.column_names
    emails, phones = rows.column("email").to_pylist(), rows.column("phone").to_pylist()
    assert emails[0] == emails[1]
    assert phones[0] != phones[1]
    assert emails[2] is phones[2] is None
    assert {value.partition(".")[0] for value in [*emails[:2], *phones[:2]]} == {"k2"}
    text = str(rows.to_pylist())
    assert not [clear for clear in (SECRET, "+4412345", "Elm", "1990", "54321") if clear in text]


def test_an_encrypted_column_is_revealed_with_its_keys_alone() -> None:
    phone = SCHEMA.personal[1]
    older = stored({"phone": "+1"}, keys=KeyRing((OLD,))).column("phone")
    newer = stored({"phone": "+2"}, {}).column("phone")
    both = pa.concat_arrays([older.combine_chunks(), newer.combine_chunks()])
    assert revealed("people", phone, both, RING).to_pylist() == ["+1", "+2", None]
    with pytest.raises(FailedPrecondition, match='"k1"') as missing:
        revealed("people", phone, both, KeyRing((NEW,)))
    assert missing.value.reason == "PRIVACY_KEY_MISSING"
    for other in (("others", phone), ("people", replace(phone, name="fax"))):
        with pytest.raises(DataLoss):
            revealed(*other, both, RING)
    with pytest.raises(DataLoss, match="not encrypted"):
        revealed("people", phone, pa.array(["clear"]), RING)


@given(st.text(), st.text())
def test_pseudonyms_are_stable_for_each_key_and_differ_between_keys(one: str, other: str) -> None:
    table = pa.table({"email": pa.array([one, other], pa.string())})
    schema = replace(SCHEMA, attributes=SCHEMA.attributes[:1])

    def pseudonyms(key: Key, dataset: str = "people") -> list[str]:
        found: list[str] = (
            Treatments(dataset, schema, KeyRing((key,))).apply(table).column("email").to_pylist()
        )
        return found

    assert pseudonyms(NEW) == pseudonyms(NEW)
    assert (pseudonyms(NEW)[0] == pseudonyms(NEW)[1]) == (one == other)
    # The same secret by another name too: the dataset is part of the key.
    assert not {*pseudonyms(NEW)} & {*pseudonyms(OLD), *pseudonyms(NEW, "others")}
    bodies = [{value.partition(".")[2] for value in pseudonyms(key)} for key in (OLD, NEW)]
    assert not bodies[0] & bodies[1]


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=6, max_size=20), min_size=1))
def test_no_clear_value_is_in_rows_hash_input_or_profile(values: list[str]) -> None:
    marked = [f"<{value}>" for value in values]
    rows = stored(*({"email": value, "phone": value, "street": value} for value in marked))
    profile = extended(None, SCHEMA, rows.to_batches())
    shown = str(rows.to_pylist()) + str(profile)
    assert not [value for value in marked if value in shown]
    email = profile.field("email")
    assert email is not None
    assert (email.count, email.values, email.moments) == (len(values), None, None)
    assert profile.field("street") is None


def test_an_event_that_is_read_again_makes_the_same_row() -> None:
    names = [field.name for field in SCHEMA.stored_fields]
    event = {"email": SECRET, "phone": "+1", "income": 3}
    assert hash_rows(stored(event), names) == hash_rows(stored(event), names)
    assert hash_rows(stored(event), names) != hash_rows(stored(event, keys=KeyRing((OLD,))), names)


def test_without_a_key_nothing_is_stored_rather_than_in_clear() -> None:
    with pytest.raises(FailedPrecondition, match=r"people\.email needs a key") as error:
        judged({"email": SECRET}, keys=NO_KEYS)
    assert error.value.reason == "PRIVACY_KEY_MISSING"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": SECRET}, '"a" is not a float32'),
        ({"a": -8.25}, '"a" is below the minimum 0'),
        ({"a": 88.25}, '"a" is above the maximum 10'),
        ({"y": 8125}, '"y" is beyond int8'),
        ({"y": 81}, '"y" is none of the allowed values'),
        ({"site": SECRET}, '"site" does not match "^[A-Z]+$"'),
        ({"born": SECRET}, '"born" is not a timestamp'),
        ({"email": 8125}, '"email" is not a string'),
    ],
)
def test_a_message_quotes_no_value_where_some_are_personal(changes: dict[str, object], message: str) -> None:
    [rejection] = judged(changes).rejections
    assert rejection.verdict.message == message


def test_a_message_of_a_number_that_is_not_finite_quotes_nothing() -> None:
    schema = replace(SCHEMA, features=(Field("a", FieldType.FLOAT64),))
    message = Sample(
        fields={
            "id": Value(string_value="p"),
            "a": Value(double_value=float("inf")),
            "y": Value(int_value=0),
        }
    )
    payloads = Spans.of([message.SerializeToString()])
    columns = ColumnReader(schema).read_protobuf(payloads, parse_sample)
    [(_, fault)] = columns.faults
    assert fault.message == '"a" is not a finite number'
    assert len(ColumnReader(schema).read_json(Spans.of([b'{"id":"p","a":1,"y":0}'])).faults) == 0


def rejection(**changes: object) -> Rejection:
    given = Rejection(
        cluster="c",
        topic="t",
        partition=0,
        offset=7,
        verdict=Verdict(Reason.MALFORMED_PAYLOAD, "no JSON"),
        dataset="people",
        event_id="e",
        traceparent="",
        key=SECRET.encode(),
        payload=b"\n\x00" + SECRET.encode(),
        headers=[("ce_note", SECRET.encode()), ("ce_replayof", b"12"), ("ce_note", b"\xff")],
        id=3,
    )
    return replace(given, **changes)  # type: ignore[arg-type]


def test_a_sealed_rejection_shows_nothing_and_comes_back_whole() -> None:
    sealed = seal(rejection(), RING)
    assert sealed.sealed_by == "k2"
    assert sealed.headers == [("ce_replayof", b"12")]
    assert SECRET not in str(sealed)
    assert unsealed(sealed, RING) == rejection()
    assert unsealed(rejection(), NO_KEYS) == rejection()
    key, event = rejected_event(sealed, NOW, 1 << 20)
    assert key == event.id
    assert SECRET.encode() not in event.data
    with pytest.raises(FailedPrecondition):
        unsealed(sealed, KeyRing((OLD,)))
    with pytest.raises(DataLoss, match="changed"):
        unsealed(replace(sealed, payload=sealed.payload[:-1] + b"?"), RING)
    with pytest.raises(DataLoss):
        unsealed(replace(sealed, payload=b""), RING)


def test_a_sealed_rejection_that_is_too_large_to_be_published_leaves_its_bytes_out() -> None:
    _, event = rejected_event(seal(rejection(payload=bytes(100_000)), RING), NOW, 16_384)
    assert len(event.data) < 1000


def test_a_ring_is_read_from_lines_or_commas_with_the_newest_key_last() -> None:
    first, second = (base64.b64encode(key.secret).decode() for key in (OLD, NEW))
    assert parse_keys(f"# of last year\nk1={first}\n\n k2 = {second}\n") == RING
    assert parse_keys(f"k1={first},k2={second}") == RING
    assert parse_keys("") == NO_KEYS
    assert "1111" not in repr(RING)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k1", "must be ID=BASE64"),
        ("K 1=AAAA", "must be ID=BASE64"),
        ("k1=hunter2!", "is not base64"),
        ("k1=aHVudGVyMg==", "has 7 bytes, and 32 are the least"),
        (f"k1={'A' * 44},k1={'B' * 44}", 'has the id "k1", which another key has'),
    ],
)
def test_a_wrong_ring_is_told_without_its_secrets(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as error:
        parse_keys(text)
    assert error.value.reason == "INVALID_KEY_RING"
    assert "hunter2" not in str(error.value)


def changed(treatment: Treatment | None, role: Role = Role.PERSONAL) -> Schema:
    email = replace(SCHEMA.personal[0], treatment=treatment, role=role)
    return replace(SCHEMA, attributes=(email, *SCHEMA.attributes[1:]))


def test_a_treatment_can_change_to_drop_alone() -> None:
    check_evolution(SCHEMA, changed(Treatment.DROP), 2)
    assert changes_values(SCHEMA, changed(None))
    assert not changes_values(changed(None), changed(Treatment.DROP))
    for old, new in (
        (SCHEMA, changed(Treatment.ENCRYPT)),
        (changed(None), SCHEMA),
        (changed(None, Role.IGNORED), SCHEMA),
    ):
        with pytest.raises(HeadraceError) as refused:
            check_evolution(old, new, 2)
        assert refused.value.fields[0].field == "schema.attributes.email.treatment"


def test_only_personal_fields_are_treated() -> None:
    with pytest.raises(InvalidArgument, match="only what is personal is treated"):
        check_schema(changed(Treatment.ENCRYPT, Role.IGNORED))
