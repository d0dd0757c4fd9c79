"""Versions of a schema that their owner declares, and events that were written by earlier ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.support.records import Headers, Sent, records_of

from headrace.errors import FailedPrecondition
from headrace.ingestion.domain.columnar import stored_schema
from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.domain.evolution import SchemaVersion, check_convertible, check_evolution
from headrace.ingestion.domain.rejection import Reason
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Role, Schema, Treatment
from headrace.ingestion.domain.validation import RowValidator, Violation
from headrace.ingestion.use_cases.envelopes import open_envelopes
from headrace.ingestion.use_cases.judge_batch import Judge, Judged
from headrace.ingestion.use_cases.ports import SchemaName
from headrace.messaging.attributes import read_attributes
from headrace.tensors import TensorType

NOW = datetime(2026, 1, 2, tzinfo=UTC)
WEIGHT = Field("weight", FieldType.FLOAT32, min=0)
GRADE = Field("grade", FieldType.INT8, nullable=True)
EMAIL = Field("email", FieldType.STRING, nullable=True, role=Role.PERSONAL, treatment=Treatment.PSEUDONYMISE)
LABEL = Field("sick", FieldType.INT8, allowed_values=(0, 1))
FIRST = Schema("id", (WEIGHT, GRADE), LABEL)
HEIGHT = Field("height", FieldType.FLOAT32, default=1.5)
GRAMS = Field("grams", FieldType.INT64, nullable=True)
# Without the weight; with a grade that is always there, as wide as it may be; and with two new fields.
SECOND = Schema(
    "id", (replace(GRADE, type=FieldType.INT32, nullable=False, default=9, max=10), HEIGHT, GRAMS), LABEL
)
DATASET = Dataset("scans", SECOND, Cut(), 2, NOW, NOW)
EARLIER = {("scans", 1): FIRST}


def known(*schemas: Schema) -> Sequence[SchemaVersion]:
    return [SchemaVersion(number, schema, NOW) for number, schema in enumerate(schemas, start=1)]


def headers(offset: int, version: str | None) -> Headers:
    named = [] if version is None else [("ce_dataschema", version.encode())]
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"%d" % offset),
        ("ce_source", b"tests"),
        ("ce_type", b"headrace.ingestion.sample.v1"),
        ("ce_subject", b"scans"),
        ("content-type", b"application/json"),
        *named,
    ]


def judge(
    *events: tuple[str | None, Mapping[str, object]],
    dataset: Dataset = DATASET,
    earlier: Mapping[SchemaName, Schema] = EARLIER,
) -> Judged:
    """Judge samples, each with the version that it names."""
    records = records_of(
        Sent(offset, orjson.dumps(sample), headers(offset, version))
        for offset, (version, sample) in enumerate(events)
    )
    opened = open_envelopes(records, read_attributes(records), {}, 10_000)
    return Judge().judge("cluster", opened, {dataset.name: dataset}, None, earlier)


def rows_of(judged: Judged) -> Sequence[tuple[object, ...]]:
    """The values of the dataset's own fields, by offset."""
    rows = judged.rows["scans"].sort_by("_offset").select(stored_schema(SECOND).names)
    return [tuple(row.values()) for row in rows.to_pylist()]


def test_events_of_both_versions_in_one_batch_are_read_each_by_its_own() -> None:
    judged = judge(
        ("datasets/scans/schemas/1", {"id": "a", "weight": 7, "grade": 100, "sick": 1}),
        (None, {"id": "b", "grade": 10, "height": 2, "grams": 7, "sick": 0}),
        ("https://headrace.example/datasets/scans/schemas/1", {"id": "c", "weight": 7, "sick": 1}),
        ("2", {"id": "d", "grade": 1, "sick": 0}),
        ("1", {"id": "e", "weight": -1, "sick": 1}),
        (None, {"id": "f", "weight": 7, "sick": 1}),
        ("1", {"id": "g", "height": 1, "weight": 7, "sick": 1}),
    )
    # 100 is more than the new maximum, and was none too many by the first version.
    assert rows_of(judged) == [
        ("a", 100, 1.5, None, 1),
        ("b", 10, 2.0, 7, 0),
        ("c", 9, 1.5, None, 1),
        ("d", 1, 1.5, None, 0),
    ]
    faults = {each.offset: (each.verdict.field, each.verdict.rule) for each in judged.rejections}
    assert faults == {4: ("weight", "min"), 5: ("weight", "unknown_field"), 6: ("height", "unknown_field")}


@pytest.mark.parametrize(
    "version",
    ["3", "0", "01", "99999999999999999999", "datasets/other/schemas/1", "datasets/scans/schemas/latest"],
)
def test_a_version_that_the_dataset_does_not_have_is_told(version: str) -> None:
    # Another instance may have applied it since this one read the dataset.
    earlier = {**EARLIER, ("scans", 3): FIRST}
    judged = judge((version, {"id": "a", "weight": 7, "sick": 1}), earlier=earlier)
    [rejection] = judged.rejections
    assert not judged.rows
    assert rejection.verdict.reason is Reason.SCHEMA_UNKNOWN
    assert (rejection.verdict.field, rejection.verdict.rule) == ("ce_dataschema", "version")
    assert "its newest is 2" in rejection.verdict.message


@pytest.mark.parametrize("version", ["https://registry.example/schemas/ids/1", "urn:weights:1", ""])
def test_what_names_somebody_elses_schema_says_nothing(version: str) -> None:
    assert rows_of(judge((version, {"id": "d", "grade": 1, "sick": 0}))) == [("d", 1, 1.5, None, 0)]


def test_what_became_personal_is_quoted_for_no_version() -> None:
    site = Field("site", FieldType.STRING, allowed_values=("left",), role=Role.IGNORED)
    first = replace(FIRST, attributes=(site,))
    dropped = replace(site, allowed_values=(), role=Role.PERSONAL, nullable=True)
    dataset = replace(DATASET, schema=replace(SECOND, attributes=(dropped,)))
    check_convertible(dataset.schema, known(first))
    [rejection] = judge(
        ("1", {"id": "a", "weight": 7, "sick": 1, "site": "secret"}),
        dataset=dataset,
        earlier={("scans", 1): first},
    ).rejections
    assert rejection.verdict.message == '"site" is none of the allowed values'


def test_a_change_that_is_not_safe_says_how_to_declare_it() -> None:
    with pytest.raises(FailedPrecondition, match="schema_version: 5") as caught:
        check_evolution(FIRST, SECOND, 5)
    assert caught.value.reason == "INCOMPATIBLE_SCHEMA"


@pytest.mark.parametrize(
    ("features", "path"),
    [
        # Each event needs a value.
        ((WEIGHT, GRADE, replace(HEIGHT, default=None)), "schema.features.height"),
        ((WEIGHT, replace(GRADE, nullable=False)), "schema.features.grade.nullable"),
        # A column has one type, whatever became of the field in between.
        ((GRADE, replace(WEIGHT, type=FieldType.STRING, min=None)), "schema.features.weight.type"),
        ((GRADE, replace(WEIGHT, type=FieldType.INT64)), "schema.features.weight.type"),
        ((WEIGHT, replace(GRADE, type=FieldType.INT8)), "schema.features.grade.type"),
    ],
)
def test_a_version_whose_rows_not_all_events_can_become_is_refused(
    features: tuple[Field, ...], path: str
) -> None:
    between = Schema("id", (replace(GRADE, type=FieldType.INT16),), LABEL)
    with pytest.raises(FailedPrecondition) as caught:
        check_convertible(replace(FIRST, features=features), known(FIRST, between))
    assert caught.value.reason == "SCHEMA_NOT_CONVERTIBLE"
    assert path in [violation.field for violation in caught.value.fields]


TENSOR = Field("scan", FieldType.TENSOR, tensor=TensorType("uint8", (2, 2), "raw"))


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        (FIRST, replace(FIRST, key="other"), "schema.key"),
        (FIRST, replace(FIRST, label=replace(LABEL, name="ill")), "schema.label"),
        (FIRST, replace(FIRST, label=replace(LABEL, allowed_values=(1,))), "schema.label.allowed_values"),
        (
            replace(FIRST, features=(TENSOR,)),
            replace(FIRST, features=(replace(TENSOR, tensor=TensorType("uint8", (4,), "raw")),)),
            "schema.features.scan.tensor",
        ),
        # What is personal would come in clear, or be kept in clear where its event is rejected.
        (replace(FIRST, attributes=(EMAIL,)), FIRST, "schema.attributes.email"),
        (
            replace(FIRST, attributes=(EMAIL,)),
            replace(FIRST, attributes=(replace(EMAIL, role=Role.IGNORED, treatment=None),)),
            "schema.attributes.email.role",
        ),
        (
            replace(FIRST, attributes=(EMAIL,)),
            replace(FIRST, attributes=(replace(EMAIL, treatment=Treatment.ENCRYPT),)),
            "schema.attributes.email.treatment",
        ),
    ],
)
def test_what_no_declaration_changes(old: Schema, new: Schema, path: str) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        check_convertible(new, known(old))
    assert path in [violation.field for violation in caught.value.fields]


def test_the_fields_of_before_may_come_back_as_wide_as_their_columns_are_now() -> None:
    wide = replace(GRADE, type=FieldType.INT32)
    again = replace(FIRST, features=(replace(WEIGHT, default=0), wide))
    check_convertible(again, known(FIRST, SECOND))


VALUES = {
    FieldType.BOOL: st.booleans(),
    FieldType.INT8: st.integers(-128, 127),
    FieldType.INT32: st.integers(-(2**31), 2**31 - 1),
    FieldType.FLOAT32: st.floats(-1e30, 1e30),
    FieldType.FLOAT64: st.floats(allow_nan=False, allow_infinity=False),
    FieldType.STRING: st.text(max_size=5),
}


@st.composite
def fields(draw: st.DrawFn, name: str) -> Field:
    """A field of any type with a rule or a default, or none."""
    field_type = draw(st.sampled_from(sorted(VALUES, key=lambda each: each.value)))
    return Field(
        name,
        field_type,
        nullable=draw(st.booleans()),
        min=draw(st.none() | st.integers(-5, 0).map(float)) if field_type.is_number else None,
        default=draw(st.none() | st.just(1 if field_type.is_number else None)),
    )


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    names = draw(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, unique=True))
    return Schema("id", tuple(draw(fields(name)) for name in names), replace(LABEL, nullable=True))


@given(data=st.data(), old=schemas(), new=schemas())
def test_each_event_that_an_earlier_version_takes_becomes_a_row(
    data: st.DataObject, old: Schema, new: Schema
) -> None:
    try:
        check_convertible(new, known(old))
    except FailedPrecondition:
        assume(False)
    sample: dict[str, object] = {"id": "p", "sick": None}
    for field in old.features:
        if not (field.nullable or field.default is not None) or data.draw(st.booleans()):
            sample[field.name] = data.draw(VALUES[field.type])
    row = RowValidator(old).validate(sample)
    judged = judge(("1", sample), dataset=replace(DATASET, schema=new), earlier={("scans", 1): old})
    if isinstance(row, Violation):
        assert [each.verdict.field for each in judged.rejections] == [row.field]
        return
    assert not judged.rejections
    stored = judged.rows["scans"]
    assert stored.select(stored_schema(new).names).schema.equals(stored_schema(new))
    before = dict(zip([field.name for field in old.fields], row, strict=True))
    for field in new.fields:
        [value] = stored.column(field.name).to_pylist()
        assert value is not None or field.nullable
        if before.get(field.name) is not None and field.type is not FieldType.FLOAT32:
            assert value == pytest.approx(before[field.name])
