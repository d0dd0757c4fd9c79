"""What a valid sample looks like: fields, their types and rules."""

from __future__ import annotations

import enum
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import re2

from headrace.errors import FieldViolation, InvalidArgument
from headrace.tensors import TensorType

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
    TIMESTAMP = "timestamp"
    TENSOR = "tensor"

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

WIDER: Final = {
    FieldType.INT8: (FieldType.INT16, FieldType.INT32, FieldType.INT64),
    FieldType.INT16: (FieldType.INT32, FieldType.INT64),
    FieldType.INT32: (FieldType.INT64,),
    FieldType.FLOAT32: (FieldType.FLOAT64,),
}
"""Types that hold each of a type's values, and in which each has the same content hash.

No integer becomes a float: 1 and 1.0 are different JSON and hash differently.
"""

FLOAT32_OVERFLOW: Final = (2.0 - 2.0**-24) * 2.0**127
"""The smallest double that rounds to infinity as a float32 (half a unit above the largest one)."""


def integer_range(field_type: FieldType) -> tuple[int, int]:
    """Smallest and largest value of an integer type."""
    half: int = 1 << (INTEGER_BITS[field_type] - 1)
    return -half, half - 1


class Role(enum.Enum):
    """What a column is for, beyond its place in the schema."""

    PROTECTED = "protected"
    """An attribute by which models must not discriminate."""
    PERSONAL = "personal"
    IGNORED = "ignored"
    TIME = "time"
    """When the sample was true: the row's event time."""


class Treatment(enum.Enum):
    """How a personal field is stored."""

    DROP = "drop"
    """Not at all."""
    PSEUDONYMISE = "pseudonymise"
    """As a keyed hash: equal values stay equal."""
    ENCRYPT = "encrypt"


@dataclass(frozen=True, slots=True)
class Field:
    """One column of a dataset.

    `min` and `max` are inclusive and for numbers only; empty `allowed_values` allow any. `pattern` is for
    strings: RE2's syntax, in linear time whatever it says, and found anywhere in the value unless anchored.
    `default` takes the place of a value that is missing, but not of a null. `tensor` is a tensor's, and only
    a tensor's.
    """

    name: str
    type: FieldType
    nullable: bool = False
    min: float | None = None
    max: float | None = None
    allowed_values: tuple[Scalar, ...] = ()
    pattern: str = ""
    default: Scalar | None = None
    unit: str = ""
    description: str = ""
    role: Role | None = None
    """None: what its place says, a feature or the label."""
    tensor: TensorType | None = None
    treatment: Treatment | None = None
    """Of a personal field. None: it is dropped, since that alone cannot be a mistake."""

    @property
    def is_personal(self) -> bool:
        """Whether its values are somebody's own."""
        return self.role is Role.PERSONAL

    @property
    def treated(self) -> Treatment:
        """How a personal field is stored."""
        assert self.is_personal
        return self.treatment or Treatment.DROP

    @property
    def is_dropped(self) -> bool:
        """Whether its values are not stored at all."""
        return self.is_personal and self.treated is Treatment.DROP


@dataclass(frozen=True, slots=True)
class Schema:
    """A sample's fields: the key (a non-empty string), the features in the models' order, the label.

    `attributes` are stored beside them and given to no model; each has a role.
    """

    key: str
    features: tuple[Field, ...]
    label: Field
    attributes: tuple[Field, ...] = ()

    @property
    def fields(self) -> tuple[Field, ...]:
        """All columns: key, features, label, attributes."""
        return (Field(self.key, FieldType.STRING), *self.features, self.label, *self.attributes)

    @property
    def personal(self) -> tuple[Field, ...]:
        """The fields whose values are never stored, shown or told as they came."""
        return tuple(field for field in self.attributes if field.is_personal)

    @property
    def stored_fields(self) -> tuple[Field, ...]:
        """The table's columns: `fields`, but of the personal ones those that are stored, as texts."""
        return tuple(
            Field(field.name, FieldType.STRING, nullable=True) if field.is_personal else field
            for field in self.fields
            if not field.is_dropped
        )

    @property
    def time(self) -> Field | None:
        """The field that says when the sample was true."""
        return next((field for field in self.attributes if field.role is Role.TIME), None)


@dataclass(frozen=True, slots=True)
class Cut:
    """When a version is cut by itself; zero switches a trigger off."""

    rows: int = 0
    seconds: float = 0.0
    schedule: str = ""
    """A cron expression, in UTC; "" switches it off."""


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
    for path, field in fields_by_path(schema):
        if not NAME_PATTERN.match(field.name):
            yield FieldViolation(path, f"a name must match {NAME_PATTERN.pattern}")
        if field.name in seen:
            yield FieldViolation(path, f'the name "{field.name}" is taken by another field')
        seen.add(field.name)
        yield from _field_violations(path, field)
    if schema.label.type is FieldType.TENSOR:
        yield FieldViolation("schema.label.type", "no model answers with a tensor: make it a feature")
    yield from _role_violations(schema)
    for path, field in fields_by_path(schema):
        if field.treatment is not None and not field.is_personal:
            yield FieldViolation(f"{path}.treatment", "only what is personal is treated: give it that role")


def fields_by_path(schema: Schema) -> Iterator[tuple[str, Field]]:
    """All fields but the key, by where the contract has them."""
    yield from named_columns(schema)
    yield "schema.label", schema.label


def named_columns(schema: Schema) -> Iterator[tuple[str, Field]]:
    """The fields that have names of their own: features and attributes."""
    for field in schema.features:
        yield f"schema.features.{field.name}", field
    for field in schema.attributes:
        yield f"schema.attributes.{field.name}", field


def _role_violations(schema: Schema) -> Iterator[FieldViolation]:
    times = 0
    for field in schema.attributes:
        path = f"schema.attributes.{field.name}"
        if field.role is None:
            yield FieldViolation(f"{path}.role", "say what it is for: protected, personal, ignored or time")
        if field.role is Role.TIME:
            times += 1
            if field.type is not FieldType.TIMESTAMP:
                yield FieldViolation(f"{path}.type", f"a time is a timestamp, not a {field.type.value}")
            if times > 1:
                yield FieldViolation(f"{path}.role", "another field is the time already")
    for path, field in [*named_columns(replace(schema, attributes=())), ("schema.label", schema.label)]:
        if field.type is FieldType.TIMESTAMP:
            yield FieldViolation(f"{path}.type", "no model takes a timestamp: move it to the attributes")
        if field.role not in (None, Role.PROTECTED):
            yield FieldViolation(
                f"{path}.role",
                f"models would learn from what is {field.role.value}: move it to the attributes",
            )


def _field_violations(path: str, field: Field) -> Iterator[FieldViolation]:
    yield from _tensor_violations(path, field)
    for bound_name, bound in (("min", field.min), ("max", field.max)):
        if bound is None:
            continue
        if not field.type.is_number:
            yield FieldViolation(f"{path}.{bound_name}", f"a {field.type.value} has no {bound_name}")
        elif not math.isfinite(bound):
            yield FieldViolation(f"{path}.{bound_name}", "must be a finite number")
    if field.min is not None and field.max is not None and field.min > field.max:
        yield FieldViolation(f"{path}.min", f"{field.min:g} is above max, {field.max:g}")
    wrong_pattern = _pattern_fault(field)
    if wrong_pattern:
        yield FieldViolation(f"{path}.pattern", wrong_pattern)
        return
    for index, value in enumerate(field.allowed_values):
        yield from _value_violations(f"{path}.allowed_values[{index}]", value, field)
    if field.default is not None:
        where = f"{path}.default_value"
        yield from _value_violations(where, field.default, field)
        if field.allowed_values and field.default not in field.allowed_values:
            yield FieldViolation(where, f"{field.default!r} is not among the allowed values")


def _tensor_violations(path: str, field: Field) -> Iterator[FieldViolation]:
    if (field.tensor is not None) is not (field.type is FieldType.TENSOR):
        yield FieldViolation(
            f"{path}.tensor", "a tensor has numbers of a type and a shape, and only a tensor"
        )
    elif field.tensor is not None and field.tensor.fault():
        yield FieldViolation(f"{path}.tensor", field.tensor.fault())


def _pattern_fault(field: Field) -> str:
    if not field.pattern:
        return ""
    if field.type is not FieldType.STRING:
        return f"a {field.type.value} has no pattern"
    try:
        compiled_pattern(field.pattern)
        # Batches meet the pattern in Arrow: what it does not take would stop them.
        pc.match_substring_regex(pa.array([""]), field.pattern)
    except (re2.error, pa.ArrowInvalid) as error:
        return f"is no regular expression in RE2's syntax: {error}"
    return ""


def compiled_pattern(pattern: str) -> Callable[[str], bool]:
    """Whether a string has a part that matches. Raises re2.error."""
    options = re2.Options()
    # It is said to who wrote the pattern; the library would print it.
    options.log_errors = False
    compiled = re2.compile(pattern, options)
    return lambda text: compiled.search(text) is not None


def _value_violations(where: str, value: Scalar, field: Field) -> Iterator[FieldViolation]:
    """What is wrong with a value that the schema itself names."""
    if not _is_of_type(value, field.type):
        # A timestamp has none: no JSON value is one.
        yield FieldViolation(where, f"{value!r} is not a {field.type.value}")
    elif isinstance(value, str):
        if field.pattern and not compiled_pattern(field.pattern)(value):
            yield FieldViolation(where, f"{value!r} does not match the pattern")
    elif field.min is not None and value < field.min:
        yield FieldViolation(where, f"{value!r} is below min")
    elif field.max is not None and value > field.max:
        yield FieldViolation(where, f"{value!r} is above max")


def _is_of_type(value: Scalar, field_type: FieldType) -> bool:
    if isinstance(value, bool):
        return field_type is FieldType.BOOL
    if isinstance(value, int):
        if field_type.is_integer:
            low, high = integer_range(field_type)
            return low <= value <= high
        return _is_float(value, field_type)
    if isinstance(value, float):
        return _is_float(value, field_type)
    return field_type is FieldType.STRING


def _is_float(value: float, field_type: FieldType) -> bool:
    if field_type is FieldType.FLOAT32:
        return abs(value) < FLOAT32_OVERFLOW
    return field_type is FieldType.FLOAT64 and abs(value) <= sys.float_info.max
