"""Avro records (1.12) to samples, by the schema of who wrote them: the authority, record by record.

A writer's fields are matched with the dataset's by name; those that the dataset does not name are skipped,
whatever they are, as Avro's schema resolution does. `flat_avro` reads whole batches and must agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any, Final, TypeAlias

import fastavro
import orjson
from fastavro.schema import SchemaParseException

from headrace.ingestion.domain.avro_references import whole
from headrace.ingestion.domain.schema import FieldType, Schema

Node: TypeAlias = str | list[Any] | dict[str, Any]
"""A type as Avro's JSON writes it: a name, a union's types, or an object."""

NANOSECONDS: Final[Mapping[str, int]] = {
    "timestamp-millis": 1_000_000,
    "timestamp-micros": 1_000,
    "timestamp-nanos": 1,
}
"""What one unit of a logical type is. A local timestamp has no zone, and is no moment."""

# A type without an end to its depth could overflow the decoder's stack, and one that takes no bytes could be
# written without end: what such a schema allows, no decoder of theirs is safe from.
_MOST_TYPES: Final = 10_000
_MOST_DEPTH: Final = 100
_MOST_BYTES: Final = 2**31 - 1
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


class UnusableSchema(Exception):  # noqa: N818 - what it is, not what to call it
    """A writer's schema by which no sample can be read; `rule` names what it would need."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule
        self.message = message


@dataclass(frozen=True, slots=True)
class WriterField:
    """A field of the record; `units` are the nanoseconds of what its integers count, where they are times."""

    name: str
    type: Node
    units: int | None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The payload is no record of its schema."""

    message: str


class AvroReader:
    """A writer's schema, prepared for many records of a dataset. Keeps no state; any thread may use it."""

    format: Final = "avro"

    def __init__(self, definition: str, schema: Schema, references: Sequence[str] = ()) -> None:
        """`definition`, and those that it refers to: JSON, as the schema registry has it.

        Raises UnusableSchema.
        """
        written = _parsed_json(definition)
        try:
            if references:
                written = whole(written, references)
            self._parsed = _parsed(written)
            _Types().extent(self._parsed)
            self.fields = _fields(self._parsed, written)
        except RecursionError as error:
            raise UnusableSchema("size", "is nested too deeply") from error
        except (SchemaParseException, AttributeError, LookupError, TypeError, ValueError) as error:
            # A registry may not have looked at what it was given.
            raise UnusableSchema("avro", f"is no Avro schema: {type(error).__name__}: {error}") from error
        times = {field.name for field in schema.fields if field.type is FieldType.TIMESTAMP}
        named = {field.name for field in schema.fields}
        self._units = {
            field.name: field.units if field.name in times else None
            for field in self.fields
            if field.name in named
        }

    def read(self, payload: bytes) -> dict[str, object] | Unreadable:
        """The values of the dataset's fields; a time is RFC 3339, as in JSON."""
        stream = BytesIO(payload)
        try:
            record = fastavro.schemaless_reader(stream, self._parsed, None)
        except Exception as error:
            # Anybody may have written these bytes: whatever the decoder stumbles over, they are no record.
            return Unreadable(f"the payload is no record of its schema ({type(error).__name__})")
        if stream.read(1):
            return Unreadable("the payload goes on behind the record of its schema")
        assert isinstance(record, dict)
        return {
            name: _as_time(record[name], units) if units else record[name]
            for name, units in self._units.items()
        }


def avro_string(text: str) -> bytes:
    """A text as it stands in a record."""
    stream = BytesIO()
    fastavro.schemaless_writer(stream, "string", text)
    return stream.getvalue()


def _as_time(value: object, units: int) -> object:
    """A number of units since the epoch as a time; as it is where no calendar has it, and anything else."""
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    try:
        return (_EPOCH + timedelta(microseconds=value * units // 1000)).isoformat()
    except OverflowError:
        return value


def _parsed_json(definition: str) -> dict[str, Any]:
    try:
        written = orjson.loads(definition)
    except orjson.JSONDecodeError as error:
        raise UnusableSchema("avro", f"is no Avro schema: {error}") from error
    if not isinstance(written, dict) or written.get("type") != "record":
        raise UnusableSchema("record", "describes no record, which a sample is")
    return written


def _parsed(written: dict[str, Any]) -> dict[str, Any]:
    parsed = fastavro.parse_schema(_bare(written))
    assert isinstance(parsed, dict)
    return parsed


def _fields(parsed: dict[str, Any], written: dict[str, Any]) -> Sequence[WriterField]:
    fields = [
        WriterField(field["name"], field["type"], _units(original["type"]))
        for field, original in zip(parsed["fields"], written["fields"], strict=True)
    ]
    if len({field.name for field in fields}) < len(fields):
        raise UnusableSchema("avro", "has two fields of one name")
    return fields


# Values are wanted as they are written: what a logical type makes of them is the dataset's to say. Defaults
# are for readers, and not each writer's library checks them.
_LEFT_OUT: Final = ("logicalType", "default")


def _bare(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _bare(part) for name, part in node.items() if name not in _LEFT_OUT}
    if isinstance(node, list):
        return [_bare(part) for part in node]
    return node


def _units(node: Node) -> int | None:
    """Of a field's type, as it was written: a union has one long at most."""
    for branch in node if isinstance(node, list) else [node]:
        if isinstance(branch, dict) and branch.get("type") == "long":
            return NANOSECONDS.get(branch.get("logicalType", ""))
    return None


@dataclass(frozen=True, slots=True)
class _Extent:
    """How many types a value of a type may be made of, and whether it may take no bytes at all."""

    types: int
    empty: bool = False


class _Types:
    """The types of a schema, looked at for whether reading a value ends."""

    def __init__(self) -> None:
        self._named: dict[str, _Extent] = {}
        self._entered: set[str] = set()
        self._depth = 0

    def extent(self, node: Node) -> _Extent:
        """Raises UnusableSchema where reading might not end, or take too long."""
        # Python's own limit is whatever some library has set it to.
        if self._depth == _MOST_DEPTH:
            raise UnusableSchema("size", f"is nested more than {_MOST_DEPTH} types deep")
        self._depth += 1
        found = self._of_name(node) if isinstance(node, str) else self._of_type(node)
        self._depth -= 1
        if found.types > _MOST_TYPES:
            raise UnusableSchema("size", f"is made of more than {_MOST_TYPES} types")
        return found

    def _of_name(self, name: str) -> _Extent:
        if name in self._entered:
            raise UnusableSchema("recursive", f"refers to {name} within itself, and a sample has an end")
        return self._named.get(name, _Extent(1, empty=name == "null"))

    def _of_type(self, node: list[Any] | dict[str, Any]) -> _Extent:
        match node:
            case list():
                return _Extent(1 + sum(self.extent(branch).types for branch in node))
            case {"fields": fields, "name": name}:
                self._entered.add(name)
                parts = [self.extent(field["type"]) for field in fields]
                self._entered.remove(name)
                types = 1 + sum(part.types for part in parts)
                self._named[name] = _Extent(types, empty=all(part.empty for part in parts))
                return self._named[name]
            case {"items": items}:
                part = self.extent(items)
                if part.empty:
                    raise UnusableSchema("size", "has an array whose items take no bytes")
                return _Extent(1 + part.types)
            case {"values": values}:
                return _Extent(1 + self.extent(values).types)
            case {"size": size, "name": name}:
                if not isinstance(size, int) or not 0 <= size <= _MOST_BYTES:
                    raise UnusableSchema("size", f"has a fixed of {str(size)[:20]} bytes")
                self._named[name] = _Extent(1, empty=size == 0)
                return self._named[name]
        inner = node["type"]
        return _Extent(1) if inner == "enum" else self.extent(inner)
