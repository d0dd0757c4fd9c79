"""One sample against its dataset's schema: the authority on what is valid, row by row.

`columnar` takes whole batches and must agree; what it doubts is decided here.
"""

from __future__ import annotations

import base64
import binascii
import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from headrace.ingestion.domain.schema import (
    FLOAT32_OVERFLOW,
    Field,
    FieldType,
    Scalar,
    Schema,
    compiled_pattern,
    integer_range,
)
from headrace.tensors import TensorFault, TensorType


class Rule(enum.Enum):
    """What a sample can break; the value is the stable name that a rejected event carries."""

    UNKNOWN_FIELD = "unknown_field"
    REQUIRED = "required"
    TYPE = "type"
    TYPE_RANGE = "type_range"
    FINITE = "finite"
    NOT_EMPTY = "not_empty"
    MIN = "min"
    MAX = "max"
    ALLOWED_VALUES = "allowed_values"
    PATTERN = "pattern"
    BASE64 = "base64"
    SIZE = "size"
    DECODES = "decodes"
    SHAPE = "shape"


@dataclass(frozen=True, slots=True)
class Violation:
    """The first rule that a sample breaks, in the schema's order of fields."""

    field: str
    rule: Rule
    message: str


Value = Scalar | bytes
"""A valid value: a timestamp's is microseconds since the epoch, a tensor's its bytes as they came."""

Row = tuple[Value | None, ...]
"""A valid sample's values in the order of `Schema.fields`."""

Check = Callable[[object], Value | Violation]
_SHOWN_CHARACTERS: Final = 80


class RowValidator:
    """A schema, prepared for many rows."""

    def __init__(self, schema: Schema, *, quotes: bool = True) -> None:
        self._fields = schema.fields
        self._names = frozenset(field.name for field in self._fields)
        self._checks = [(field, check_of(field)) for field in self._fields]
        self._key = schema.key
        # Whose values are somebody's own may stand in a wrong field, and messages go everywhere.
        self._quotes = quotes and not schema.personal

    def validate(self, sample: Mapping[str, object]) -> Row | Violation:
        """The sample's values, or the first rule that it breaks."""
        values: list[Value | None] = []
        for field, check in self._checks:
            value = sample.get(field.name, field.default)
            if value is None:
                if not field.nullable:
                    return _missing(field, present=field.name in sample)
                values.append(None)
                continue
            checked = check(value)
            if isinstance(checked, Violation):
                return checked if self._quotes else _unquoted(field, checked)
            values.append(checked)
        if values[0] == "":
            return Violation(self._key, Rule.NOT_EMPTY, f'the key "{self._key}" is empty')
        for name in sample:
            if name not in self._names:
                return Violation(name, Rule.UNKNOWN_FIELD, f"{_shown(name)} is no field of the dataset")
        return tuple(values)


def _unquoted(field: Field, violation: Violation) -> Violation:
    """The same without the value."""
    match violation.rule:
        case _ if field.tensor is not None:
            what = f"is no {field.tensor}"
        case Rule.TYPE_RANGE:
            what = f"is beyond {field.type.value}"
        case Rule.FINITE:
            what = "is not a finite number"
        case Rule.MIN:
            what = f"is below the minimum {field.min:g}"
        case Rule.MAX:
            what = f"is above the maximum {field.max:g}"
        case Rule.ALLOWED_VALUES:
            what = "is none of the allowed values"
        case Rule.PATTERN:
            what = f"does not match {_shown(field.pattern)}"
        case _:
            what = f"is not {_article(field.type)}"
    return Violation(violation.field, violation.rule, f'"{field.name}" {what}')


def _missing(field: Field, *, present: bool) -> Violation:
    what = "is null" if present else "is missing"
    return Violation(field.name, Rule.REQUIRED, f'"{field.name}" {what}, and is not nullable')


def check_of(field: Field) -> Check:
    """What a value that is not null becomes, or the rule that it breaks."""
    if field.type is FieldType.BOOL:
        base = _check_bool(field)
    elif field.type is FieldType.STRING:
        base = _check_pattern(field) if field.pattern else _check_string(field)
    elif field.type is FieldType.TIMESTAMP:
        base = _check_timestamp(field)
    elif field.tensor is not None:
        base = _check_tensor(field, field.tensor)
    elif field.type.is_integer:
        base = _check_integer(field)
    else:
        base = _check_float(field)
    return _check_allowed(field, base) if field.allowed_values else base


def _check_bool(field: Field) -> Check:
    def check(value: object) -> Value | Violation:
        return value if isinstance(value, bool) else _wrong_type(field, value)

    return check


def _check_string(field: Field) -> Check:
    def check(value: object) -> Value | Violation:
        return value if isinstance(value, str) else _wrong_type(field, value)

    return check


def _check_pattern(field: Field) -> Check:
    matches = compiled_pattern(field.pattern)

    def check(value: object) -> Value | Violation:
        if not isinstance(value, str):
            return _wrong_type(field, value)
        if matches(value):
            return value
        return Violation(
            field.name,
            Rule.PATTERN,
            f'"{field.name}" is {_shown(value)}, which does not match {_shown(field.pattern)}',
        )

    return check


_EPOCH: Final = datetime.fromtimestamp(0, UTC)


def _check_timestamp(field: Field) -> Check:
    def check(value: object) -> Value | Violation:
        if not isinstance(value, str):
            return _wrong_type(field, value)
        try:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is not None:
                return (moment.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)
        except (ValueError, OverflowError):
            # OverflowError: year 1 or 9999 in a zone that leads out of the calendar.
            pass
        return Violation(
            field.name,
            Rule.TYPE,
            f'"{field.name}" is {_shown(value)}, not an RFC 3339 time with a time zone',
        )

    return check


def _check_tensor(field: Field, tensor: TensorType) -> Check:
    def check(value: object) -> Value | Violation:
        if isinstance(value, str):
            try:
                value = base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                return Violation(field.name, Rule.BASE64, f'"{field.name}" is no base64 of a tensor\'s bytes')
        if not isinstance(value, bytes):
            return _wrong_type(field, value)
        try:
            tensor.decode(value)
        except TensorFault as fault:
            return Violation(field.name, Rule(fault.rule), f'"{field.name}" {fault.message}')
        return value

    return check


def _check_integer(field: Field) -> Check:
    low, high = integer_range(field.type)

    def check(value: object) -> Value | Violation:
        # A bool is an int to Python, and 1.0 is a float to JSON: neither is meant by an integer field.
        if not isinstance(value, int) or isinstance(value, bool):
            return _wrong_type(field, value)
        if not low <= value <= high:
            return Violation(
                field.name,
                Rule.TYPE_RANGE,
                f'"{field.name}" is {_shown(value)}, and {field.type.value} holds {low} to {high}',
            )
        return _out_of_bounds(field, value) or value

    return check


def _check_float(field: Field) -> Check:
    narrow = field.type is FieldType.FLOAT32

    def check(value: object) -> Value | Violation:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return _wrong_type(field, value)
        number = float(value)
        if not math.isfinite(number):
            return Violation(field.name, Rule.FINITE, f'"{field.name}" is {number}, not a finite number')
        if narrow and abs(number) >= FLOAT32_OVERFLOW:
            return Violation(
                field.name,
                Rule.TYPE_RANGE,
                f'"{field.name}" is {number}, too large for float32',
            )
        # One zero: -0.0 + 0.0 is 0.0. Parsers disagree on "-0", and equal rows must hash alike.
        return _out_of_bounds(field, number) or number + 0.0

    return check


def _out_of_bounds(field: Field, value: float) -> Violation | None:
    if field.min is not None and value < field.min:
        return Violation(field.name, Rule.MIN, f'"{field.name}" is {value}, below the minimum {field.min:g}')
    if field.max is not None and value > field.max:
        return Violation(field.name, Rule.MAX, f'"{field.name}" is {value}, above the maximum {field.max:g}')
    return None


def _check_allowed(field: Field, base: Check) -> Check:
    allowed = frozenset(field.allowed_values)

    def check(value: object) -> Value | Violation:
        checked = base(value)
        if isinstance(checked, Violation) or checked in allowed:
            return checked
        listed = ", ".join(_shown(item) for item in field.allowed_values[:10])
        return Violation(
            field.name,
            Rule.ALLOWED_VALUES,
            f'"{field.name}" is {_shown(checked)}; allowed are {listed}',
        )

    return check


def _wrong_type(field: Field, value: object) -> Violation:
    return Violation(
        field.name,
        Rule.TYPE,
        f'"{field.name}" is {_described(value)}, not {_article(field.type)}',
    )


def _article(field_type: FieldType) -> str:
    article = "an" if field_type.value[0] in "aeiou" else "a"
    return f"{article} {field_type.value}"


def _described(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {_shown(value)}"
        case str():
            return f"the string {_shown(value)}"
        case bytes():
            return f"{len(value)} bytes"
        case list():
            # Arrays and objects nest as deep as a sender likes: they are named, never printed.
            return "an array"
        case _:
            return "an object"


def _shown(value: object) -> str:
    # A message is read by people and kept in a table: a value of a megabyte helps nobody.
    text = repr(value) if not isinstance(value, str) else f'"{value[:_SHOWN_CHARACTERS]}"'
    return text if len(text) <= _SHOWN_CHARACTERS + 2 else f"{text[:_SHOWN_CHARACTERS]}..."
