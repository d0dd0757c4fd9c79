"""Files as samples: what columns become, and that what is no value is left for the validation to say."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.client import data_files
from headrace.client.data_files import DataFile, find_files, inspect, read_rows
from headrace.errors import InvalidArgument, NotFound

SCHEMA = ingestion.Schema(
    key="id",
    features=[
        ingestion.Field(name="size", type=ingestion.FIELD_TYPE_FLOAT32),
        ingestion.Field(name="count", type=ingestion.FIELD_TYPE_INT8),
        ingestion.Field(name="sold", type=ingestion.FIELD_TYPE_BOOL),
    ],
    label=ingestion.Field(name="word", type=ingestion.FIELD_TYPE_STRING),
)


def samples(path: Path) -> list[dict[str, object]]:
    return [json.loads(row.json) for row in read_rows(path, SCHEMA)]


def test_cells_are_read_as_the_schemas_types_where_they_can_be(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(
        "\ufeffid,size,count,sold,word,other\r\n"
        '007,1,2,TRUE,"a ""word"",\nin lines",x\r\n'
        "\r\n"
        "b,,1.0,maybe,nan,\r\n"
        "c,1e999,99999999999999999999,false,1_0,,beyond\r\n"
        "d,1_0,+5\r\n",
        encoding="utf-8",
    )
    assert samples(file) == [
        {"id": "007", "size": 1.0, "count": 2, "sold": True, "word": 'a "word",\nin lines', "other": "x"},
        {"id": "b", "count": 1.0, "sold": "maybe", "word": "nan"},
        {
            "id": "c",
            "size": "1e999",
            "count": "99999999999999999999",
            "sold": False,
            "word": "1_0",
            "column 7": "beyond",
        },
        {"id": "d", "size": "1_0", "count": 5},
    ]
    rows = list(read_rows(file, SCHEMA))
    assert [(row.number, row.key) for row in rows] == [(1, "007"), (2, "b"), (3, "c"), (4, "d")]
    # JSON tells an integer from a float.
    assert b'"size":1.0' in rows[0].json
    assert b'"count":2,' in rows[0].json


def test_a_tensors_bytes_become_base64(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    columns = {"id": ["a", "b"], "t": pa.array([b"\x00\xff", None], pa.binary())}
    pq.write_table(pa.table(columns), file)
    schema = ingestion.Schema(
        key="id", features=[ingestion.Field(name="t", type=ingestion.FIELD_TYPE_TENSOR)]
    )
    assert [json.loads(row.json) for row in read_rows(file, schema)] == [
        {"id": "a", "t": "AP8="},
        {"id": "b"},
    ]


def test_parquets_values_become_json_and_nulls_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    table = pa.table(
        {
            "id": [7, 8],
            "size": [1.5, float("nan")],
            "count": pa.array([1, None], pa.int8()),
            "large": [float("inf"), 0.0],
            "at": pa.array([moment, None], pa.timestamp("us", "UTC")),
            "naive": pa.array([moment.replace(tzinfo=None), None], pa.timestamp("us")),
            "day": [date(2026, 1, 2), None],
            "price": [Decimal("1.50"), None],
            "raw": [b"\xff", None],
            "list": [[1], None],
        }
    )
    pq.write_table(table, file)
    assert samples(file) == [
        {
            "id": "7",
            "size": 1.5,
            "count": 1,
            "large": "inf",
            "at": "2026-01-02T03:04:05+00:00",
            "naive": "2026-01-02T03:04:05Z",
            "day": "2026-01-02",
            "price": 1.5,
            "raw": "\ufffd",
            "list": [],
        },
        {"id": "8", "large": 0.0},
    ]
    assert inspect(file).rows == 2


def test_lines_of_json_are_sent_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"id": "a", "x": 1.0}\n\n {broken \n{"id": 7}\n[1]\n{"id": "b"}'))
    rows = list(read_rows(file, SCHEMA))
    assert [(row.number, row.json, row.key) for row in rows] == [
        (1, b'{"id": "a", "x": 1.0}', "a"),
        (3, b"{broken", ""),
        (4, b'{"id": 7}', ""),
        (5, b"[1]", ""),
        (6, b'{"id": "b"}', "b"),
    ]
    assert inspect(file).rows == 6


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.csv", b""),
        ("twice.csv", b"a,a\n1,2\n"),
        ("latin.csv", b"id,a\n\xe9,1\n"),
        ("quote.csv", b'id,a\n"open,1\n'),
        ("no.parquet", b"PAR1 it is not"),
        ("no.jsonl.gz", b"not packed"),
        ("cut.csv.gz", gzip.compress(b"id,a\n" * 1000)[:-20]),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InvalidArgument, match=name) as caught:
        list(read_rows(file, SCHEMA))
    assert caught.value.reason == "UNREADABLE_FILE"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.sampled_from([".csv", ".jsonl", ".parquet", ".csv.gz"]))
def test_any_bytes_are_rows_or_an_unreadable_file(tmp_path: Path, content: bytes, ending: str) -> None:
    file = tmp_path / f"any{ending}"
    file.write_bytes(content)
    try:
        numbers = [row.number for row in read_rows(file, SCHEMA)]
        # A quoted cell may have lines.
        assert len(numbers) <= inspect(file).rows + 1
        assert numbers == sorted(set(numbers))
    except InvalidArgument as error:
        assert error.reason == "UNREADABLE_FILE"


async def test_files_are_found_by_patterns_each_once(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "c.txt", "[x].csv", "deep/d.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("id\n")
    found = await find_files([f"{tmp_path}/*.csv", f"{tmp_path}/a.csv", f"{tmp_path}/**/d.csv"])
    names = [Path(file.name).name for file in found]
    assert names == ["[x].csv", "a.csv", "b.csv", "d.csv"]
    assert await find_files([f"{tmp_path}/[x].csv"]) == [DataFile(f"{tmp_path}/[x].csv")]
    with pytest.raises(NotFound) as missing:
        await find_files([f"{tmp_path}/*.parquet"])
    assert missing.value.reason == "FILE_NOT_FOUND"
    with pytest.raises(InvalidArgument) as unknown:
        await find_files([f"{tmp_path}/c.txt"])
    assert unknown.value.reason == "UNKNOWN_FILE_FORMAT"


def test_the_same_content_is_the_same_whatever_its_name(tmp_path: Path) -> None:
    for name, text in (("a.csv", "id\n1\n"), ("b.csv", "id\n1\n"), ("c.csv", "id\n1")):
        (tmp_path / name).write_text(text)
    first, second, third = (inspect(tmp_path / name) for name in ("a.csv", "b.csv", "c.csv"))
    assert first == second
    assert first.digest != third.digest
    assert (first.rows, third.rows) == (1, 1)


def test_a_cell_may_be_as_large_as_an_event(tmp_path: Path) -> None:
    file = tmp_path / "large.csv"
    file.write_text(f"id\n{'x' * 500_000}\n")
    assert [len(row.key) for row in data_files.read_rows(file, SCHEMA)] == [500_000]
