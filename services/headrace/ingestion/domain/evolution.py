"""Which changes of a schema are safe, and which an owner may declare as a new version of it.

A safe change is one that each stored row, and each event that was valid, satisfies. Any other one takes a
declaration: events may go on naming the version that they were written by, are judged by that one, and become
rows of the newest (`conversion`). What is checked here is that each of them can.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from headrace.errors import FailedPrecondition, FieldViolation
from headrace.ingestion.domain.schema import (
    WIDER,
    Field,
    Schema,
    Treatment,
    fields_by_path,
    named_columns,
)


@dataclass(frozen=True, slots=True)
class SchemaVersion:
    """One of a dataset's schemas, as it was applied. It never changes."""

    version: int
    schema: Schema
    create_time: datetime


def check_evolution(old: Schema, new: Schema, version: int) -> None:
    """Raise `FailedPrecondition` INCOMPATIBLE_SCHEMA where a stored row could break the new schema.

    Safe are: more nullable fields, rules that accept more (nullable, wider bounds, more allowed values, no
    pattern, a wider type of the same numbers), another order of the features, other defaults, units and
    descriptions, and other roles: a feature may become an attribute and the other way round. What is
    personal stays so, and how it is stored stays, too, unless it is dropped from now on: a column holds
    values of one kind. `version` is what the new schema would be declared as.
    """
    violations = incompatibilities(old, new)
    if violations:
        first = violations[0]
        raise FailedPrecondition(
            "INCOMPATIBLE_SCHEMA",
            f"{first.field}: {first.description}; stored rows would not satisfy it. "
            f"Keep the rule, or declare a new version of the schema, with schema_version: {version}",
            fields=violations,
        )


def check_convertible(new: Schema, earlier: Iterable[SchemaVersion]) -> None:
    """Raise `FailedPrecondition` SCHEMA_NOT_CONVERTIBLE where some valid event of an earlier version would
    become no row of the new schema, or a row that the table's columns do not take.
    """
    violations: dict[str, FieldViolation] = {}
    for known in sorted(earlier, key=lambda known: -known.version):
        for violation in _inconvertibilities(known, new):
            violations.setdefault(violation.field, violation)
    if violations:
        first = next(iter(violations.values()))
        raise FailedPrecondition(
            "SCHEMA_NOT_CONVERTIBLE",
            f"{first.field}: {first.description}; each event of an earlier version must become a row",
            fields=[*violations.values()],
        )


def changes_values(old: Schema, new: Schema) -> bool:
    """Whether an event that made a row by `old` may make another one by `new`, though the change is safe.

    It may where float64 keeps digits that float32 rounded away, where the event lacks a field whose default
    is another one now, and where a field is dropped that was stored.
    """
    before = {field.name: field for field in old.fields}
    for field in new.fields:
        known = before.get(field.name, replace(field, default=None))
        if field.default != known.default or (field.type.is_float and field.type is not known.type):
            return True
        if field.is_dropped and field.name in before and not known.is_dropped:
            return True
    return False


def incompatibilities(old: Schema, new: Schema) -> Sequence[FieldViolation]:
    """What stored rows could break, by field."""
    return list(_incompatibilities(old, new))


def _incompatibilities(old: Schema, new: Schema) -> Iterator[FieldViolation]:
    if old.key != new.key:
        yield FieldViolation("schema.key", f'is "{old.key}" and cannot become "{new.key}"')
    if old.label.name != new.label.name:
        yield FieldViolation("schema.label", f'is "{old.label.name}" and cannot become "{new.label.name}"')
    else:
        yield from _narrowings("schema.label", old.label, new.label)
    after = {field.name: (path, field) for path, field in named_columns(new)}
    before = {field.name: (path, field) for path, field in named_columns(old)}
    for name, (path, field) in before.items():
        if name not in after:
            yield FieldViolation(path, "cannot be removed")
        else:
            path, changed = after[name]
            yield from _narrowings(path, field, changed)
            yield from _uncoverings(path, field, changed)
    for name, (path, field) in after.items():
        if name not in before and not field.nullable:
            yield FieldViolation(path, "a field that is added must be nullable")


def _uncoverings(path: str, old: Field, new: Field) -> Iterator[FieldViolation]:
    if old.is_personal and not new.is_personal:
        yield FieldViolation(f"{path}.role", "is personal and must stay so")
    elif new.is_personal and not new.is_dropped:
        if not old.is_personal:
            yield FieldViolation(f"{path}.treatment", "stored rows hold it in clear: it can only be dropped")
        elif old.treated is not new.treated:
            yield FieldViolation(
                f"{path}.treatment", f"is {old.treated.value} and can only become {Treatment.DROP.value}"
            )


def _narrowings(path: str, old: Field, new: Field) -> Iterator[FieldViolation]:
    if not _takes(old, new):
        yield FieldViolation(f"{path}.type", f"is {old.type.value} and cannot become {new.type.value}")
        return
    if old.tensor != new.tensor:
        yield FieldViolation(f"{path}.tensor", f"is {old.tensor} and cannot become {new.tensor}")
    if old.nullable and not new.nullable:
        yield FieldViolation(f"{path}.nullable", "cannot be taken back")
    if new.min is not None and (old.min is None or new.min > old.min):
        yield FieldViolation(f"{path}.min", "cannot be raised")
    if new.max is not None and (old.max is None or new.max < old.max):
        yield FieldViolation(f"{path}.max", "cannot be lowered")
    if _excludes_values(old, new):
        yield FieldViolation(f"{path}.allowed_values", "cannot be narrowed")
    if new.pattern not in ("", old.pattern):
        yield FieldViolation(f"{path}.pattern", "cannot be added or changed, only removed")


def _takes(old: Field, new: Field) -> bool:
    """Whether a column of the new field holds each value of the old one, as the same value."""
    return old.type is new.type or new.type in WIDER.get(old.type, ())


def _excludes_values(old: Field, new: Field) -> bool:
    return bool(new.allowed_values) and (
        not old.allowed_values or not set(old.allowed_values) <= set(new.allowed_values)
    )


def _inconvertibilities(known: SchemaVersion, new: Schema) -> Iterator[FieldViolation]:
    """Only what no row can be made of: other rules are for the new version's own events."""
    old = known.schema
    told = f"in version {known.version}"
    if old.key != new.key:
        yield FieldViolation(
            "schema.key", f'is "{old.key}" {told} and stays so, since rows are split and erased by it'
        )
    if old.label.name != new.label.name:
        yield FieldViolation(
            "schema.label", f'is "{old.label.name}" {told} and stays so: use another dataset'
        )
    elif _excludes_values(old.label, new.label):
        yield FieldViolation(
            "schema.label.allowed_values", f"rows may have other classes, which are allowed {told}: keep them"
        )
    before = {field.name: field for _, field in fields_by_path(old)}
    for path, field in fields_by_path(new):
        earlier = before.get(field.name)
        if earlier is None:
            if not field.nullable and field.default is None:
                yield FieldViolation(path, f"is no field {told}: give it a default, or let it be nullable")
        else:
            yield from _misfits(path, earlier, field, told)
    names = {field.name for field in new.fields}
    for field in old.personal:
        if field.name not in names:
            yield FieldViolation(
                f"schema.attributes.{field.name}",
                f"is personal {told} and stays so, that events are covered: let it be nullable and dropped",
            )


def _misfits(path: str, old: Field, new: Field, told: str) -> Iterator[FieldViolation]:
    if not _takes(old, new):
        yield FieldViolation(
            f"{path}.type",
            f"is {old.type.value} {told}, which a column of {new.type.value} does not take; "
            "give the new field another name",
        )
    elif old.tensor != new.tensor:
        yield FieldViolation(f"{path}.tensor", f"is {old.tensor} {told}; give the new field another name")
    elif old.nullable and not new.nullable and new.default is None:
        yield FieldViolation(
            f"{path}.nullable", f"may be null {told}: give it a default, or keep it nullable"
        )
    yield from _uncoverings(path, old, new)
