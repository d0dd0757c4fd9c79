"""What a valid sample looks like: fields, their types and rules, and which changes of them are safe."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from headrace.errors import FailedPrecondition, FieldViolation, InvalidArgument

Scalar = bool | int | float | str
"""A field's value, as Python sees it. Integers and floats are told apart, and a bool is no integer."""

NAME_PATTERN: Final = re.compile(r"^[a-z][a-z0-9_]{0,62}$")
DATASET_PATTERN: Final = re.compile(r"^[a-z][a-z0-9-]{0,62}$")


class FieldType(enum.Enum):
    """The type of a column."""

    BOOL = "bool"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    STRING = "string"

    @property
    def is_integer(self) -> bool:
        """Whether values are whole numbers."""
        return self in INTEGER_BITS

    @property
    def is_float(self) -> bool:
        """Whether values are floating-point numbers."""
        return self in (FieldType.FLOAT32, FieldType.FLOAT64)

    @property
    def is_number(self) -> bool:
        """Whether values have an order that `min` and `max` can bound."""
        return self.is_integer or self.is_float


INTEGER_BITS: Final = {FieldType.INT8: 8, FieldType.INT16: 16, FieldType.INT32: 32, FieldType.INT64: 64}

FLOAT32_OVERFLOW: Final = (2.0 - 2.0**-24) * 2.0**127
"""The smallest double that rounds to infinity as a float32 (half a unit above the largest one)."""


def integer_range(field_type: FieldType) -> tuple[int, int]:
    """Smallest and largest value of an integer type."""
    half: int = 1 << (INTEGER_BITS[field_type] - 1)
    return -half, half - 1


@dataclass(frozen=True, slots=True)
class Field:
    """One column of a dataset.

    `min` and `max` are inclusive and for numbers only; empty `allowed_values` allow any.
    """

    name: str
    type: FieldType
    nullable: bool = False
    min: float | None = None
    max: float | None = None
    allowed_values: tuple[Scalar, ...] = ()


@dataclass(frozen=True, slots=True)
class Schema:
    """A sample's fields: the key (a non-empty string), the features in the models' order, the label."""

    key: str
    features: tuple[Field, ...]
    label: Field

    @property
    def fields(self) -> tuple[Field, ...]:
        """All columns: key, features, label."""
        return (Field(self.key, FieldType.STRING), *self.features, self.label)


@dataclass(frozen=True, slots=True)
class Cut:
    """When a version is cut by itself; zero switches a trigger off."""

    rows: int = 0
    seconds: float = 0.0


def check_schema(schema: Schema) -> None:
    """Raise `InvalidArgument` INVALID_SCHEMA that lists every field whose rules make no sense."""
    violations = list(_violations(schema))
    if violations:
        first = violations[0]
        raise InvalidArgument("INVALID_SCHEMA", f"{first.field}: {first.description}", fields=violations)


def _violations(schema: Schema) -> Iterator[FieldViolation]:
    if not NAME_PATTERN.match(schema.key):
        yield FieldViolation("schema.key", f"must match {NAME_PATTERN.pattern}")
    if not schema.features:
        yield FieldViolation("schema.features", "name at least one feature")
    seen = {schema.key}
    for path, field in _paths(schema):
        if not NAME_PATTERN.match(field.name):
            yield FieldViolation(path, f"a name must match {NAME_PATTERN.pattern}")
        if field.name in seen:
            yield FieldViolation(path, f'the name "{field.name}" is taken by another field')
        seen.add(field.name)
        yield from _field_violations(path, field)


def _paths(schema: Schema) -> Iterator[tuple[str, Field]]:
    for field in schema.features:
        yield f"schema.features.{field.name}", field
    yield "schema.label", schema.label


def _field_violations(path: str, field: Field) -> Iterator[FieldViolation]:
    for bound_name, bound in (("min", field.min), ("max", field.max)):
        if bound is None:
            continue
        if not field.type.is_number:
            yield FieldViolation(f"{path}.{bound_name}", f"a {field.type.value} has no {bound_name}")
        elif not math.isfinite(bound):
            yield FieldViolation(f"{path}.{bound_name}", "must be a finite number")
    if field.min is not None and field.max is not None and field.min > field.max:
        yield FieldViolation(f"{path}.min", f"{field.min:g} is above max, {field.max:g}")
    for index, value in enumerate(field.allowed_values):
        where = f"{path}.allowed_values[{index}]"
        if not _is_of_type(value, field.type):
            yield FieldViolation(where, f"{value!r} is not a {field.type.value}")
        elif field.min is not None and not isinstance(value, str) and value < field.min:
            yield FieldViolation(where, f"{value!r} is below min")
        elif field.max is not None and not isinstance(value, str) and value > field.max:
            yield FieldViolation(where, f"{value!r} is above max")


def _is_of_type(value: Scalar, field_type: FieldType) -> bool:
    if isinstance(value, bool):
        return field_type is FieldType.BOOL
    if isinstance(value, int):
        if field_type.is_integer:
            low, high = integer_range(field_type)
            return low <= value <= high
        return field_type.is_float
    if isinstance(value, float):
        return field_type.is_float and math.isfinite(value)
    return field_type is FieldType.STRING


def check_evolution(old: Schema, new: Schema) -> None:
    """Raise `FailedPrecondition` INCOMPATIBLE_SCHEMA where a stored row could break the new schema.

    Safe are: more nullable features, rules that accept more (nullable, wider bounds, more allowed
    values), and another order of the features.
    """
    violations = list(_incompatibilities(old, new))
    if violations:
        first = violations[0]
        raise FailedPrecondition(
            "INCOMPATIBLE_SCHEMA",
            f"{first.field}: {first.description}; stored rows would not satisfy it. "
            "Use a new dataset, or keep the rule",
            fields=violations,
        )


def _incompatibilities(old: Schema, new: Schema) -> Iterator[FieldViolation]:
    if old.key != new.key:
        yield FieldViolation("schema.key", f'is "{old.key}" and cannot become "{new.key}"')
    if old.label.name != new.label.name:
        yield FieldViolation("schema.label", f'is "{old.label.name}" and cannot become "{new.label.name}"')
    else:
        yield from _narrowings("schema.label", old.label, new.label)
    after = {field.name: field for field in new.features}
    before = {field.name: field for field in old.features}
    for name, field in before.items():
        path = f"schema.features.{name}"
        if name not in after:
            yield FieldViolation(path, "cannot be removed")
        else:
            yield from _narrowings(path, field, after[name])
    for name, field in after.items():
        if name not in before and not field.nullable:
            yield FieldViolation(f"schema.features.{name}", "a field that is added must be nullable")


def _narrowings(path: str, old: Field, new: Field) -> Iterator[FieldViolation]:
    if old.type is not new.type:
        yield FieldViolation(f"{path}.type", f"is {old.type.value} and cannot become {new.type.value}")
        return
    if old.nullable and not new.nullable:
        yield FieldViolation(f"{path}.nullable", "cannot be taken back")
    if new.min is not None and (old.min is None or new.min > old.min):
        yield FieldViolation(f"{path}.min", "cannot be raised")
    if new.max is not None and (old.max is None or new.max < old.max):
        yield FieldViolation(f"{path}.max", "cannot be lowered")
    if new.allowed_values and (
        not old.allowed_values or not set(old.allowed_values) <= set(new.allowed_values)
    ):
        yield FieldViolation(f"{path}.allowed_values", "cannot be narrowed")
