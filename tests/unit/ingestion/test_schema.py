from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.errors import FailedPrecondition, InvalidArgument
from headrace.ingestion.domain.schema import Field, FieldType, Schema, check_evolution, check_schema

RADIUS = Field("radius", FieldType.FLOAT32, min=0, max=10)
GRADE = Field("grade", FieldType.INT8, allowed_values=(1, 2))
LABEL = Field("malignant", FieldType.INT8, allowed_values=(0, 1))
SCHEMA = Schema("id", (RADIUS, GRADE), LABEL)


def with_radius(**changes: object) -> Schema:
    return replace(SCHEMA, features=(replace(RADIUS, **changes), GRADE))  # type: ignore[arg-type]


def test_a_sensible_schema_passes() -> None:
    check_schema(SCHEMA)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        (replace(SCHEMA, key="Id"), "schema.key"),
        (replace(SCHEMA, features=()), "schema.features"),
        (with_radius(name="_radius"), "schema.features._radius"),
        (with_radius(name="grade"), "schema.features.grade"),
        (with_radius(name="id"), "schema.features.id"),
        (with_radius(name="malignant"), "schema.label"),
        (with_radius(min=11), "schema.features.radius.min"),
        (with_radius(max=float("inf")), "schema.features.radius.max"),
        (with_radius(type=FieldType.STRING, max=None), "schema.features.radius.min"),
        (with_radius(allowed_values=("a",)), "schema.features.radius.allowed_values[0]"),
        (with_radius(allowed_values=(1, 11)), "schema.features.radius.allowed_values[1]"),
        (replace(SCHEMA, label=replace(LABEL, allowed_values=(0, 128))), "schema.label.allowed_values[1]"),
        (replace(SCHEMA, label=replace(LABEL, allowed_values=(True,))), "schema.label.allowed_values[0]"),
    ],
)
def test_a_schema_that_makes_no_sense_is_refused_by_field(schema: Schema, path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_schema(schema)
    assert caught.value.reason == "INVALID_SCHEMA"
    assert path in [violation.field for violation in caught.value.fields]


@pytest.mark.parametrize(
    "after",
    [
        SCHEMA,
        with_radius(min=-1),
        with_radius(min=None, max=None),
        with_radius(nullable=True),
        replace(SCHEMA, features=(GRADE, RADIUS)),
        replace(SCHEMA, features=(RADIUS, replace(GRADE, allowed_values=(1, 2, 3)))),
        replace(SCHEMA, features=(RADIUS, replace(GRADE, allowed_values=()))),
        replace(SCHEMA, features=(RADIUS, GRADE, Field("site", FieldType.STRING, nullable=True))),
    ],
)
def test_a_change_that_every_stored_row_satisfies_is_fine(after: Schema) -> None:
    check_evolution(SCHEMA, after)


@pytest.mark.parametrize(
    ("after", "path"),
    [
        (replace(SCHEMA, key="other"), "schema.key"),
        (replace(SCHEMA, features=(RADIUS,)), "schema.features.grade"),
        (with_radius(min=1), "schema.features.radius.min"),
        (with_radius(max=9), "schema.features.radius.max"),
        (with_radius(type=FieldType.FLOAT64), "schema.features.radius.type"),
        (with_radius(allowed_values=(1,)), "schema.features.radius.allowed_values"),
        (replace(SCHEMA, label=replace(LABEL, name="benign")), "schema.label"),
        (replace(SCHEMA, label=replace(LABEL, allowed_values=(0,))), "schema.label.allowed_values"),
        (replace(SCHEMA, features=(RADIUS, GRADE, Field("site", FieldType.STRING))), "schema.features.site"),
    ],
)
def test_a_change_that_stored_rows_could_break_is_refused(after: Schema, path: str) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        check_evolution(SCHEMA, after)
    assert caught.value.reason == "INCOMPATIBLE_SCHEMA"
    assert [violation.field for violation in caught.value.fields] == [path]


def test_nullable_cannot_be_taken_back() -> None:
    with pytest.raises(FailedPrecondition, match="taken back"):
        check_evolution(with_radius(nullable=True), SCHEMA)
