"""A dataset's section of a pipeline, proposed from a file: what its columns are, and guesses what for."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Final, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
import yaml

from headrace.client.data_files import CSV, JSON_LINES, explained, form_of, opened
from headrace.errors import InvalidArgument

# How much of a file is looked at.
LOOK_BYTES: Final = 32 << 20
LOOK_ROWS: Final = 250_000
MOST_CLASSES: Final = 20
MOST_VALUES: Final = 10

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_KEY_NAME: Final = re.compile(r"(.*_)?(id|key|uuid|guid)")
_LABEL_NAMES: Final = ("label", "target", "class", "outcome", "y")
_PROTECTED_NAMES: Final = (
    "sex",
    "gender",
    "age",
    "race",
    "ethnicity",
    "religion",
    "nationality",
    "disability",
)
_PERSONAL_NAME: Final = re.compile(r"(.*_)?(email|e_mail|phone|telephone|name|address|ssn|iban|birthday)")
_BITS: Final = (8, 16, 32, 64)
# A float32 holds each whole number up to here.
_FLOAT32_WHOLE: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class Column:
    """What is known of a column: its type in the contract's words, and the values that it has."""

    name: str
    type: str
    nullable: bool
    unique: bool
    min: float | None = None
    max: float | None = None
    values: Sequence[str | int | bool] = ()
    """All of them where they are few, and no fractions; empty otherwise."""
    notes: Sequence[str] = field(default_factory=list)

    @property
    def is_number(self) -> bool:
        """Whether a recipe can learn from it."""
        return self.type not in ("string", "timestamp")


def propose(path: Path, *, key: str = "", label: str = "", strict: bool = False) -> str:
    """The section as YAML, with a comment for each guess.

    `key` and `label` name columns that are not to be guessed; `strict` bounds numbers and texts by the values
    that the file has. Raises InvalidArgument UNREADABLE_FILE, NO_SUCH_COLUMN, NOTHING_TO_INFER.
    """
    with explained(path):
        table = _looked_at(path)
    for name in (key, label):
        if name and name not in table.column_names:
            known = ", ".join(table.column_names)
            raise InvalidArgument("NO_SUCH_COLUMN", f"{path} has no column {name!r}; it has {known}")
    columns: list[Column] = []
    lost: list[str] = []
    for name in dict.fromkeys(table.column_names):
        if not _NAME.fullmatch(name):
            lost.append(f"{name!r} is left out: rename it to lower-case letters, digits and _")
        elif pa.types.is_nested(table.column(name).type):
            lost.append(f"{name!r} is left out: a sample is flat, and this is a {table.column(name).type}")
        else:
            columns.append(_column(name, table.column(name), form_of(path)))
    if len(columns) < 3 or not table.num_rows:
        raise InvalidArgument(
            "NOTHING_TO_INFER",
            f"{path} has {table.num_rows} rows and {len(columns)} usable columns; "
            "a key, a feature and a label are needed at least",
            metadata={"next": "; ".join(lost)},
        )
    looked = f"{table.num_rows} rows of {path.name} were looked at."
    return "\n".join(_section(columns, key, label, strict=strict, head=[looked, *lost])) + "\n"


def _looked_at(path: Path) -> pa.Table:
    """The beginning of the file."""
    form = form_of(path)
    if form in CSV:
        with opened(path) as content:
            blocks = pa.csv.open_csv(
                content,
                read_options=pa.csv.ReadOptions(block_size=LOOK_BYTES),
                convert_options=pa.csv.ConvertOptions(null_values=[""], strings_can_be_null=True),
            )
            return pa.Table.from_batches(islice(blocks, 1), blocks.schema)
    if form in JSON_LINES:
        with opened(path) as content:
            return pa.json.read_json(
                io.BytesIO(b"".join(content.readlines(LOOK_BYTES))),
                read_options=pa.json.ReadOptions(block_size=2 * LOOK_BYTES),
            )
    with pq.ParquetFile(path) as file:
        batches, rows = [], 0
        for batch in file.iter_batches():
            batches.append(batch)
            rows += batch.num_rows
            if rows >= LOOK_ROWS:
                break
        return pa.Table.from_batches(batches, file.schema_arrow)


def _column(name: str, values: pa.ChunkedArray, form: str) -> Column:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_floating(values.type):
        # NaN is how files with columns say that there is no value.
        values = pc.if_else(pc.is_nan(values), None, values)
    present = values.drop_null()
    type_, notes = _type_of(present, form)
    found = pc.unique(present)
    few = sorted(found.to_pylist()) if len(found) <= MOST_CLASSES and type_ in _DISCRETE else ()
    number = len(present) and type_ != "bool" and type_ not in ("string", "timestamp")
    extremes = pc.min_max(present) if number else None
    return Column(
        name,
        type_,
        nullable=values.null_count > 0,
        unique=len(found) == len(values),
        min=_double(extremes["min"].as_py(), -math.inf) if extremes else None,
        max=_double(extremes["max"].as_py(), math.inf) if extremes else None,
        values=cast("Sequence[str | int | bool]", few),
        notes=notes,
    )


def _double(bound: float | Decimal, outward: float) -> float:
    """The bound as a schema has it; where no double is the number, the next one on its far side."""
    double = float(bound)
    inside = double > bound if outward < 0 else double < bound
    return math.nextafter(double, outward) if inside else double


_DISCRETE: Final = ("string", "bool", "int8", "int16", "int32", "int64")


def _type_of(values: pa.ChunkedArray, form: str) -> tuple[str, list[str]]:
    kind = values.type
    if pa.types.is_null(kind):
        return "string", ["has no value in this file: its type is a guess"]
    if pa.types.is_boolean(kind):
        return "bool", []
    if pa.types.is_integer(kind):
        low, high = (pc.min_max(values)[end].as_py() or 0 for end in ("min", "max"))
        bits = next((bits for bits in _BITS if -(1 << bits - 1) <= low and high < 1 << bits - 1), None)
        return (f"int{bits}", []) if bits else ("float64", ["holds numbers beyond int64"])
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        largest = pc.max(pc.abs(values.cast(pa.float64()))).as_py() or 0
        return ("float32" if largest < _FLOAT32_WHOLE else "float64"), []
    if pa.types.is_timestamp(kind):
        # Parquet's times without a zone are taken for UTC; text must say so itself.
        if kind.tz is None and form in (*CSV, *JSON_LINES):
            return "string", ["times without a zone: with one, such as Z, it can be a timestamp"]
        return "timestamp", []
    return "string", []


def _section(
    columns: Sequence[Column], key: str, label: str, *, strict: bool, head: Sequence[str]
) -> Iterator[str]:
    key_column, key_why = _chosen(columns, key) if key else _guessed_key(columns)
    others = [column for column in columns if column is not key_column]
    label_column, label_why = _chosen(others, label) if label else _guessed_label(others)
    others = [column for column in others if column is not label_column]
    features = [column for column in others if column.is_number and not _PERSONAL_NAME.fullmatch(column.name)]
    attributes = [column for column in others if column not in features]
    yield from (f"# {line}" for line in head)
    yield "dataset:"
    yield f"  key: {key_column.name}  # {key_why}"
    yield "  features:" if features else "  features: {}  # no column holds numbers"
    for column in features:
        if column.name in _PROTECTED_NAMES:
            role, why = ["role: protected"], "protected by its name; models learn from it all the same"
        else:
            role, why = [], ""
        yield _line(column, role, _bounds(column) if strict else [], why)
    classes = f"classes: {_listed(label_column.values)}"
    rules = [classes] if label_column.values else _bounds(label_column) if strict else []
    yield f"  label: {{name: {label_column.name}, {_rules(label_column, rules)}}}  # {label_why}"
    if attributes:
        yield "  attributes:  # stored, and given to no model"
    has_time = False
    for column in attributes:
        guessed, why = _role(column, has_time=has_time)
        has_time = has_time or guessed == "time"
        # People's data has no place in a pipeline's file.
        bounds = _bounds(column) if strict and guessed != "personal" else []
        yield _line(column, [f"role: {guessed}"], bounds, why)


def _chosen(columns: Sequence[Column], name: str) -> tuple[Column, str]:
    found = next((column for column in columns if column.name == name), None)
    if found is None:
        raise InvalidArgument("NO_SUCH_COLUMN", f"the column {name!r} cannot be it: see what is left out")
    return found, "as you said" + _key_note(found, "")


def _guessed_key(columns: Sequence[Column]) -> tuple[Column, str]:
    fit = [
        column for column in columns if not column.nullable and not column.type.startswith(("float", "bool"))
    ]
    named = [column for column in fit if _KEY_NAME.fullmatch(column.name)]
    for candidates, why in (
        ([column for column in named if column.unique], "named like a key, and unique in this file"),
        (named, "named like a key; several rows of one key are one entity, in one split"),
        ([column for column in fit if column.unique and column.type == "string"], "unique in this file"),
        (fit, "a guess: no column is named like a key; it names the entity that a sample is about"),
        (columns, "a guess, and one without a value in some rows: choose another one"),
    ):
        if candidates:
            return candidates[0], _key_note(candidates[0], why)
    raise AssertionError("there are columns")


def _key_note(column: Column, why: str) -> str:
    number = "; a number in this file: JSON must send it as text" if column.is_number else ""
    return f"{why}{number}"


def _guessed_label(columns: Sequence[Column]) -> tuple[Column, str]:
    for name in _LABEL_NAMES:
        for column in columns:
            if column.name == name:
                return column, "named like a label"
    numbers = [column for column in columns if column.is_number]
    if numbers:
        return numbers[-1], "a guess: the last column of numbers"
    return columns[-1], "a guess: the last column"


def _role(column: Column, *, has_time: bool) -> tuple[str, str]:
    if column.name in _PROTECTED_NAMES:
        return "protected", "by its name"
    if _PERSONAL_NAME.fullmatch(column.name):
        return "personal", "by its name; dropped, unless you add a treatment"
    if column.type == "timestamp" and not has_time:
        return "time", "the first time in the file"
    return "ignored", "text: as a feature, it must be encoded" if column.type == "string" else "a time"


def _line(column: Column, role: Sequence[str], bounds: Sequence[str], why: str) -> str:
    notes = "; ".join(note for note in (why, *column.notes) if note)
    return f"    {column.name}: {{{_rules(column, [*role, *bounds])}}}" + (f"  # {notes}" if notes else "")


def _rules(column: Column, rules: Sequence[str]) -> str:
    nullable = ["nullable: true"] if column.nullable else []
    return ", ".join([f"type: {column.type}", *nullable, *rules])


def _bounds(column: Column) -> list[str]:
    # Values that never come again say nothing about the next ones.
    if column.values and column.type != "bool" and len(column.values) <= MOST_VALUES and not column.unique:
        return [f"values: {_listed(column.values)}"]
    if column.min is None or column.max is None:
        return []
    return [f"min: {_text(column.min)}", f"max: {_text(column.max)}"]


def _text(bound: float) -> str:
    return f"{bound:.0f}" if bound.is_integer() and abs(bound) < _LONGEST else repr(bound)


_LONGEST: Final = 1e19


def _listed(values: Sequence[str | int | bool]) -> str:
    return f"[{', '.join(map(_yaml, values))}]"


def _yaml(value: str | int | bool) -> str:
    if isinstance(value, str):
        # Quoted, so that "no" and "1" stay words.
        quoted: str = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=sys.maxsize)
        return quoted.strip()
    return json.dumps(value)
