from __future__ import annotations

import random

import pyarrow as pa
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from headrace.ingestion.domain.content_hash import combine, from_hex, hash_rows, to_hex

NAMES = ("id", "a", "b", "flag")
SCHEMA = pa.schema([("id", pa.string()), ("a", pa.float32()), ("b", pa.int16()), ("flag", pa.bool_())])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.one_of(st.none(), st.text(max_size=4)),
            "a": st.one_of(st.none(), st.floats(width=32, allow_nan=False)),
            "b": st.one_of(st.none(), st.integers(-5, 5)),
            "flag": st.one_of(st.none(), st.booleans()),
        }
    ),
    max_size=30,
)


def table_of(rows: list[dict[str, object]], schema: pa.Schema = SCHEMA) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema)


@given(ROWS, st.randoms())
def test_the_order_of_rows_and_of_columns_does_not_matter(
    rows: list[dict[str, object]], random_source: random.Random
) -> None:
    shuffled = random_source.sample(rows, len(rows))
    assert hash_rows(table_of(rows), NAMES) == hash_rows(table_of(shuffled), NAMES[::-1])


@given(ROWS, st.integers(0, 30))
def test_the_grouping_into_batches_does_not_matter(rows: list[dict[str, object]], split: int) -> None:
    whole = hash_rows(table_of(rows), NAMES)
    parts = combine(hash_rows(table_of(rows[:split]), NAMES), hash_rows(table_of(rows[split:]), NAMES))
    assert whole == parts


@given(ROWS.filter(bool))
def test_every_row_counts_and_counts_as_often_as_it_is_there(rows: list[dict[str, object]]) -> None:
    whole = hash_rows(table_of(rows), NAMES)
    assert whole != hash_rows(table_of(rows[1:]), NAMES)
    assert whole != hash_rows(table_of([*rows, rows[0], rows[0]]), NAMES)


@given(ROWS)
def test_wider_types_and_added_nullable_columns_change_no_hash(rows: list[dict[str, object]]) -> None:
    wider = pa.schema(
        [
            ("id", pa.string()),
            ("a", pa.float64()),
            ("b", pa.int64()),
            ("flag", pa.bool_()),
            ("new", pa.int8()),
        ]
    )
    narrow = table_of(rows)
    widened = pa.table(
        [
            *(narrow.column(field.name).cast(field.type) for field in list(wider)[:4]),
            pa.nulls(len(rows), pa.int8()),
        ],
        schema=wider,
    )
    assert hash_rows(narrow, NAMES) == hash_rows(widened, (*NAMES, "new"))


def test_a_null_is_not_a_zero_and_fields_do_not_run_into_each_other() -> None:
    schema = pa.schema([("a", pa.string()), ("b", pa.string())])
    samples: list[dict[str, object]] = [
        {"a": "x", "b": ""},
        {"a": "", "b": "x"},
        {"a": "x", "b": None},
        {"a": None, "b": "x"},
    ]
    assert len({hash_rows(table_of([sample], schema), ("a", "b")) for sample in samples}) == 4


def test_the_definition_can_be_computed_by_anyone() -> None:
    rows = table_of([{"id": "p", "a": 1.5, "b": -2, "flag": True}])
    header = xxhash.xxh64_intdigest(b"a\0b\0flag\0id" + bytes(5)).to_bytes(8, "little")
    values = (
        bytes.fromhex("000000000000f83f feffffffffffffff 0100000000000000 0100000000000000") + b"p" + bytes(7)
    )
    lanes = [xxhash.xxh64_intdigest(header + values, seed) for seed in range(4)]
    assert hash_rows(rows, NAMES) == sum(lane << (64 * seed) for seed, lane in enumerate(lanes))
    assert from_hex(to_hex(5)) == 5
