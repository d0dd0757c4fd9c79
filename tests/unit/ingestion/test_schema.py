from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.errors import FailedPrecondition, InvalidArgument
from headrace.ingestion import translation
from headrace.ingestion.domain.evolution import changes_values, check_evolution
from headrace.ingestion.domain.schema import (
    Field,
    FieldType,
    Role,
    Schema,
    check_schema,
)
from headrace.tensors import TensorType

RADIUS = Field("radius", FieldType.FLOAT32, min=0, max=10)
GRADE = Field("grade", FieldType.INT8, allowed_values=(1, 2))
LABEL = Field("malignant", FieldType.INT8, allowed_values=(0, 1))
SCHEMA = Schema("id", (RADIUS, GRADE), LABEL)


SEX = Field("sex", FieldType.STRING, pattern="^[fm]$", default="f", role=Role.PROTECTED)
TAKEN = Field("taken", FieldType.TIMESTAMP, nullable=True, role=Role.TIME, unit="UTC", description="when")
EMAIL = Field("email", FieldType.STRING, nullable=True, role=Role.PERSONAL)
RICH = replace(SCHEMA, attributes=(SEX, TAKEN, EMAIL))


def with_sex(**changes: object) -> Schema:
    return replace(RICH, attributes=(replace(SEX, **changes), TAKEN, EMAIL))  # type: ignore[arg-type]


def with_radius(**changes: object) -> Schema:
    return replace(SCHEMA, features=(replace(RADIUS, **changes), GRADE))  # type: ignore[arg-type]


@pytest.mark.parametrize("schema", [SCHEMA, RICH, with_radius(role=Role.PROTECTED, default=0, unit="mm")])
def test_a_sensible_schema_passes(schema: Schema) -> None:
    check_schema(schema)


def test_a_tensor_has_a_type_and_keeps_it() -> None:
    image = Field("image", FieldType.TENSOR, tensor=TensorType("uint8", (8, 8), "png"))
    schema = replace(SCHEMA, features=(image,))
    check_schema(schema)
    assert translation.schema_from_message(translation.schema_to_message(schema)) == schema
    for wrong, path in (
        (replace(SCHEMA, features=(replace(image, tensor=None),)), "schema.features.image.tensor"),
        (
            replace(SCHEMA, features=(replace(image, type=FieldType.STRING),)),
            "schema.features.image.tensor",
        ),
        (replace(SCHEMA, features=(replace(image, min=1),)), "schema.features.image.min"),
        (replace(SCHEMA, features=(replace(image, default="AA=="),)), "schema.features.image.default_value"),
        (
            replace(SCHEMA, features=(replace(image, tensor=TensorType("uint8", ())),)),
            "schema.features.image.tensor",
        ),
        (replace(SCHEMA, label=image), "schema.label.type"),
    ):
        with pytest.raises(InvalidArgument) as refused:
            check_schema(wrong)
        assert refused.value.fields[0].field == path
    other = replace(image, tensor=TensorType("uint8", (16, 16), "png"))
    with pytest.raises(FailedPrecondition) as incompatible:
        check_evolution(schema, replace(SCHEMA, features=(other,)), 2)
    assert incompatible.value.fields[0].field == "schema.features.image.tensor"
    assert "png uint8[8, 8] and cannot become png uint8[16, 16]" in incompatible.value.message


def test_a_schema_survives_translation() -> None:
    assert translation.schema_from_message(translation.schema_to_message(RICH)) == RICH


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
        (with_radius(pattern="a"), "schema.features.radius.pattern"),
        (with_radius(default=11), "schema.features.radius.default_value"),
        (with_radius(default="1"), "schema.features.radius.default_value"),
        (with_radius(default=3.5e38, max=None), "schema.features.radius.default_value"),
        (with_radius(default=10**400, max=None), "schema.features.radius.default_value"),
        (with_radius(role=Role.PERSONAL), "schema.features.radius.role"),
        (with_radius(type=FieldType.TIMESTAMP, min=None, max=None), "schema.features.radius.type"),
        (replace(SCHEMA, label=replace(LABEL, default=2)), "schema.label.default_value"),
        (with_sex(pattern="("), "schema.attributes.sex.pattern"),
        # RE2 has no backreferences, by which other engines can be made to run for ever.
        (with_sex(pattern=r"(a+)\1"), "schema.attributes.sex.pattern"),
        (with_sex(default="x"), "schema.attributes.sex.default_value"),
        (with_sex(allowed_values=("f", "x")), "schema.attributes.sex.allowed_values[1]"),
        (with_sex(role=None), "schema.attributes.sex.role"),
        (with_sex(role=Role.TIME), "schema.attributes.sex.type"),
        (with_sex(name="radius"), "schema.attributes.radius"),
        (replace(RICH, attributes=(TAKEN, replace(TAKEN, name="again"))), "schema.attributes.again.role"),
        (replace(RICH, attributes=(replace(TAKEN, default="now"),)), "schema.attributes.taken.default_value"),
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
        with_radius(type=FieldType.FLOAT64),
        with_radius(default=1, unit="cm", description="wider", role=Role.PROTECTED),
        replace(SCHEMA, features=(RADIUS, replace(GRADE, type=FieldType.INT64))),
        replace(SCHEMA, label=replace(LABEL, type=FieldType.INT16)),
        replace(SCHEMA, attributes=(TAKEN, EMAIL)),
        # What models learnt from no longer: it is stored all the same.
        replace(SCHEMA, features=(RADIUS,), attributes=(replace(GRADE, role=Role.IGNORED),)),
    ],
)
def test_a_change_that_every_stored_row_satisfies_is_fine(after: Schema) -> None:
    check_evolution(SCHEMA, after, 2)


@pytest.mark.parametrize(
    ("after", "path"),
    [
        (replace(SCHEMA, key="other"), "schema.key"),
        (replace(SCHEMA, features=(RADIUS,)), "schema.features.grade"),
        (with_radius(min=1), "schema.features.radius.min"),
        (with_radius(max=9), "schema.features.radius.max"),
        (with_radius(type=FieldType.INT64), "schema.features.radius.type"),
        (with_radius(type=FieldType.STRING, min=None, max=None), "schema.features.radius.type"),
        # 1 and 1.0 hash differently.
        (
            replace(SCHEMA, features=(RADIUS, replace(GRADE, type=FieldType.FLOAT64))),
            "schema.features.grade.type",
        ),
        (replace(SCHEMA, attributes=(SEX,)), "schema.attributes.sex"),
        (with_radius(allowed_values=(1,)), "schema.features.radius.allowed_values"),
        (replace(SCHEMA, label=replace(LABEL, name="benign")), "schema.label"),
        (replace(SCHEMA, label=replace(LABEL, allowed_values=(0,))), "schema.label.allowed_values"),
        (replace(SCHEMA, features=(RADIUS, GRADE, Field("site", FieldType.STRING))), "schema.features.site"),
    ],
)
def test_a_change_that_stored_rows_could_break_is_refused(after: Schema, path: str) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        check_evolution(SCHEMA, after, 2)
    assert caught.value.reason == "INCOMPATIBLE_SCHEMA"
    assert [violation.field for violation in caught.value.fields] == [path]


def test_a_wider_type_cannot_be_taken_back() -> None:
    with pytest.raises(FailedPrecondition, match=r"is float64 and cannot become float32"):
        check_evolution(with_radius(type=FieldType.FLOAT64), SCHEMA, 2)


@pytest.mark.parametrize(
    ("after", "path"),
    [
        (with_sex(pattern="^[fmx]$"), "schema.attributes.sex.pattern"),
        (replace(RICH, attributes=(SEX, TAKEN)), "schema.attributes.email"),
        (
            replace(RICH, attributes=(SEX, TAKEN, replace(EMAIL, role=Role.IGNORED))),
            "schema.attributes.email.role",
        ),
    ],
)
def test_what_attributes_cannot_become(after: Schema, path: str) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        check_evolution(RICH, after, 2)
    assert [violation.field for violation in caught.value.fields] == [path]


def test_a_pattern_can_be_removed_and_other_roles_given() -> None:
    check_evolution(RICH, with_sex(pattern="", role=Role.PERSONAL), 2)


def test_nullable_cannot_be_taken_back() -> None:
    with pytest.raises(FailedPrecondition, match="taken back"):
        check_evolution(with_radius(nullable=True), SCHEMA, 2)


def test_wider_floats_and_other_defaults_change_the_values_of_stored_events() -> None:
    old = Schema(
        "id",
        (Field("x", FieldType.FLOAT32), Field("n", FieldType.INT8, default=1)),
        Field("y", FieldType.INT8),
    )
    x, n = old.features
    added = Field("z", FieldType.STRING, nullable=True)

    def changes(*features: Field) -> bool:
        new = replace(old, features=features)
        check_evolution(old, new, 2)
        return changes_values(old, new)

    assert not changes(x, n)
    assert not changes(n, replace(x, nullable=True, description="a length"), added)
    assert not changes(x, replace(n, type=FieldType.INT64))
    assert changes(replace(x, type=FieldType.FLOAT64), n)
    assert changes(x, replace(n, default=2))
    assert changes(x, replace(n, default=None))
    assert changes(x, n, replace(added, default="here"))
