"""Rows by an earlier version of a schema as rows of the newest one."""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from headrace.ingestion.domain.columnar import STORED_TYPES, parsed_type
from headrace.ingestion.domain.schema import Field, Schema
from headrace.ingestion.domain.validation import check_of


class Conversion:
    """From one schema to another that is `evolution.check_convertible` with it, prepared for many batches."""

    def __init__(self, old: Schema, new: Schema) -> None:
        self._known: Final = frozenset(field.name for field in old.fields)
        self._fields: Final = new.fields
        self._defaults: Final = {
            field.name: stored_default(field) for field in new.fields if field.default is not None
        }

    def apply(self, rows: pa.Table) -> pa.Table:
        """What both have is taken over, as wide as it is now, and what only the old one has left out.

        What is new has its default, or null. A null of before becomes the default where there may be none
        now; else it stays, since a null is a statement.
        """
        return pa.table([self._column(rows, field) for field in self._fields], names=self._names)

    @property
    def _names(self) -> list[str]:
        return [field.name for field in self._fields]

    def _column(self, rows: pa.Table, field: Field) -> pa.ChunkedArray:
        stored, default = STORED_TYPES[field.type], self._defaults.get(field.name)
        if field.name not in self._known:
            value = pa.scalar(None, stored) if default is None else default
            return pa.chunked_array([pa.repeat(value, rows.num_rows)])
        column = rows.column(field.name).cast(stored)
        return column if default is None or field.nullable else pc.fill_null(column, default)


def stored_default(field: Field) -> pa.Scalar:
    """A field's default, as it is stored."""
    value = check_of(field)(field.default)
    # By way of the wide type: Arrow refuses a double for a float32.
    return pa.scalar(value, parsed_type(field)).cast(STORED_TYPES[field.type], safe=False)
