"""The reader on real tables: each row once, in an order that can be had again."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from pathlib import Path

import deltalake
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace.datasets import (
    Classes,
    Flat,
    Numbers,
    Reader,
    Shard,
    Shuffle,
    Table,
    Tensors,
    rows_at_a_time,
)
from headrace.errors import FailedPrecondition, InvalidArgument, NotFound
from headrace.tensors import TensorType

ROWS = 500
FILES = 3


class Odd:
    """Rows with an odd number."""

    columns = ("number",)

    def mask(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        return np.asarray(batch.column("number").to_numpy() % 2 == 1)


class Noting(Numbers):
    """Notes how many rows come at a time."""

    def __init__(self, columns: Sequence[str]) -> None:
        super().__init__(columns)
        self.seen: list[int] = []

    def encode(self, batch: pa.RecordBatch) -> torch.Tensor:
        self.seen.append(len(batch))
        return super().encode(batch)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three files of several row groups each, of different sizes; the last one has another column."""
    folder = tmp_path_factory.mktemp("table")
    properties = deltalake.WriterProperties(max_row_group_size=60)
    for numbers in np.array_split(np.arange(ROWS), [230, 240]):
        columns = {
            "number": pa.array(numbers, pa.int32()),
            "half": pa.array(numbers / 2, pa.float64()),
            "label": pa.array((numbers % 3).astype("int8")),
        }
        if numbers[-1] == ROWS - 1:
            columns["late"] = pa.array(numbers, pa.float32())
        deltalake.write_deltalake(
            str(folder),
            pa.table(columns),
            mode="append",
            schema_mode="merge",
            writer_properties=properties,
        )
    return folder.as_uri()


@pytest.fixture(scope="module")
def table(uri: str) -> Table:
    return Table.open(uri, FILES - 1)


def numbers_of(batches: Sequence[tuple[torch.Tensor, ...]]) -> list[int]:
    return [int(number) for features, *_ in batches for number in features[:, 0]]


def reader(table: Table, **options: object) -> Reader:
    return Reader(table, [Numbers(["number"])], **{"batch_rows": 32, **options})  # type: ignore[arg-type]


def test_rows_come_as_tensors_side_by_side(table: Table) -> None:
    [(features, labels)] = Reader(
        table, [Numbers(["half", "number"]), Classes("label", [2, 1, 0])], batch_rows=ROWS
    )
    number = torch.arange(ROWS)
    assert features.dtype == torch.float32
    order = features[:, 1].argsort()
    assert torch.equal(features[order], torch.stack([number / 2, number.float()], dim=1))
    assert torch.equal(labels[order], 2 - number % 3)


def test_a_column_that_older_files_lack_is_missing_there(table: Table) -> None:
    [(features,)] = Reader(table, [Numbers(["number", "late"], nullable=["late"])], batch_rows=ROWS)
    late = features[:, 1]
    assert int(late.isnan().sum()) == 240
    assert torch.equal(late[~late.isnan()].sort().values, torch.arange(240, ROWS).float())


def test_how_much_memory_columns_take_is_known_before_they_are_read(table: Table) -> None:
    columns = ["number", "half", "label"]
    assert table.decoded_bytes(columns) == ROWS * (4 + 8 + 1)
    assert table.decoded_bytes(["late"]) == (ROWS - 240) * 4


@pytest.mark.parametrize("text", ["patient-{:06}", "the same in every row"])
def test_text_is_counted_as_long_as_it_is_in_memory(tmp_path: Path, text: str) -> None:
    deltalake.write_deltalake(str(tmp_path), pa.table({"text": [text.format(row) for row in range(10_000)]}))
    table = Table.open(str(tmp_path), 0)
    assert table.decoded_bytes(["text"]) == pytest.approx(table.read(["text"]).nbytes, rel=0.1)


def test_without_a_shuffle_rows_are_in_the_tables_order(table: Table) -> None:
    expected = table.read(["number"]).column("number").to_pylist()
    assert numbers_of(list(reader(table))) == expected
    assert sorted(expected) == list(range(ROWS))


@settings(max_examples=25)
@given(
    count=st.integers(1, 12),
    window=st.integers(20, 2 * ROWS),
    seed=st.integers(),
    batch=st.integers(5, ROWS + 1),
    shuffled=st.booleans(),
)
def test_every_row_comes_once_in_an_epoch_over_all_shards(
    table: Table, count: int, window: int, seed: int, batch: int, shuffled: bool
) -> None:
    shuffle = Shuffle(seed, window) if shuffled else None
    readers = [
        reader(table, batch_rows=batch, shuffle=shuffle, shard=Shard(index, count)) for index in range(count)
    ]
    for _ in range(2):
        shards = [numbers_of(list(shard)) for shard in readers]
        assert sorted(itertools.chain(*shards)) == list(range(ROWS))
        assert all(shards)


@settings(max_examples=25)
@given(
    stops=st.lists(st.integers(0, 12), max_size=6),
    window=st.integers(20, ROWS),
    selected=st.booleans(),
    shuffled=st.booleans(),
)
def test_wherever_it_is_resumed_the_rest_follows(
    table: Table, stops: list[int], window: int, selected: bool, shuffled: bool
) -> None:
    def another() -> Reader:
        return reader(
            table,
            selection=Odd() if selected else None,
            shuffle=Shuffle(5, window) if shuffled else None,
        )

    whole = another()
    expected = [list(whole), list(whole)]
    found = []
    current = another()
    for stop in stops:
        if current.epoch == 2:
            break
        taken = list(itertools.islice(current, stop))
        found += taken
        state = current.state_dict()
        current = another()
        current.load_state_dict(state)
    while current.epoch < 2:
        found += list(current)
    assert numbers_of(found) == numbers_of(expected[0]) + numbers_of(expected[1])
    assert [len(batch[0]) for batch in found] == [len(batch[0]) for epoch in expected for batch in epoch]


def test_a_loop_that_was_left_goes_on_in_the_next_one(table: Table) -> None:
    expected = numbers_of(list(reader(table, shuffle=Shuffle(1, 100))))
    once = reader(table, shuffle=Shuffle(1, 100))
    first = list(itertools.islice(once, 4))
    assert numbers_of(first + list(once)) == expected


def test_the_same_seed_is_the_same_order_and_an_epoch_is_another(table: Table) -> None:
    one, same, other = (reader(table, shuffle=Shuffle(seed, 100)) for seed in (1, 1, 2))
    first, second = numbers_of(list(one)), numbers_of(list(one))
    assert numbers_of(list(same)) == first
    assert len({tuple(order) for order in (first, second, numbers_of(list(other)), range(ROWS))}) == 4


def test_a_window_as_large_as_the_table_mixes_all_rows(table: Table) -> None:
    """Under a fair order of 500 rows the mean distance of neighbours is 167, with a deviation of 4."""
    order = np.array(numbers_of(list(reader(table, shuffle=Shuffle(0, ROWS)))))
    assert 140 < np.abs(np.diff(order)).mean() < 195


def test_only_selected_rows_are_encoded(table: Table) -> None:
    """Labels that are no class stand in rows that are not wanted."""

    class Zeros(Odd):
        columns = ("label",)

        def mask(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
            return np.asarray(batch.column("label").to_numpy() == 0)

    zeros = Reader(table, [Classes("label", [0])], batch_rows=64, selection=Zeros())
    assert sum(len(labels) for (labels,) in zeros) == len(range(0, ROWS, 3))


def test_a_selection_that_wants_nothing_is_an_empty_epoch(table: Table) -> None:
    class Nothing(Odd):
        def mask(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
            return np.zeros(len(batch), np.bool_)

    empty = reader(table, selection=Nothing(), shuffle=Shuffle(0))
    assert list(empty) == []
    assert empty.epoch == 1


def test_an_error_while_reading_ahead_comes_after_the_batches_before_it(table: Table) -> None:
    class Breaks(Numbers):
        def encode(self, batch: pa.RecordBatch) -> torch.Tensor:
            if batch.column("number")[0].as_py() not in first:
                raise RuntimeError("a broken disk")
            return super().encode(batch)

    first = {table.read(["number"]).column("number")[0].as_py()}
    broken = Reader(table, [Breaks(["number"])], batch_rows=10)
    seen = []
    with pytest.raises(RuntimeError, match="a broken disk"):
        seen.extend(broken)
    assert seen
    expected = list(reader(table, batch_rows=10))
    assert numbers_of(seen) == numbers_of(expected)[: len(numbers_of(seen))]


def test_a_file_that_has_gone_is_named_by_its_table(tmp_path: Path) -> None:
    deltalake.write_deltalake(str(tmp_path), pa.table({"number": pa.array(range(9), pa.int32())}))
    table = Table.open(str(tmp_path), 0)
    for file in tmp_path.glob("*.parquet"):
        file.unlink()
    with pytest.raises(NotFound, match="version 0 of the table"):
        list(reader(table))


def test_no_thread_stays_when_a_loop_is_left(table: Table) -> None:
    before = set(threading.enumerate())
    batches = iter(reader(table, batch_rows=1, shuffle=Shuffle(0, 8)))
    next(batches)
    assert set(threading.enumerate()) > before
    batches.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) == before


def test_a_state_of_other_rows_is_refused(table: Table, uri: str) -> None:
    state = reader(table, shuffle=Shuffle(1, 8)).state_dict()
    others = [
        reader(table, shuffle=Shuffle(2, 8)),
        reader(table, shuffle=Shuffle(1, 8), shard=Shard(0, 2)),
        reader(Table.open(uri, 1), shuffle=Shuffle(1, 8)),
    ]
    for other in others:
        with pytest.raises(InvalidArgument) as caught:
            other.load_state_dict(state)
        assert caught.value.reason == "FOREIGN_READER_STATE"


def test_a_missing_value_where_none_is_allowed_is_refused(table: Table) -> None:
    with pytest.raises(FailedPrecondition, match="late has no value") as caught:
        list(Reader(table, [Numbers(["late"])], batch_rows=8))
    assert caught.value.reason == "UNUSABLE_VALUES"


@pytest.mark.parametrize(
    ("values", "what"),
    [(["a"], "text"), (pa.array([0], pa.timestamp("us", "UTC")), "timestamp")],
)
def test_what_is_no_number_is_refused(tmp_path: Path, values: object, what: str) -> None:
    deltalake.write_deltalake(str(tmp_path), pa.table({"x": values}))
    with pytest.raises(FailedPrecondition, match=f"x is {what}") as caught:
        list(Reader(Table.open(str(tmp_path), 0), [Numbers(["x"])], batch_rows=8))
    assert caught.value.reason == "UNUSABLE_VALUES"


@pytest.mark.parametrize("value", [3.4028236e38, -1e300])
def test_a_number_beyond_float32_is_refused(value: float) -> None:
    batch = pa.record_batch({"x": [1.0, None, value, 3.4028234e38]})
    with pytest.raises(FailedPrecondition, match=r"x is beyond float32, .* in 1 of 4 rows") as caught:
        Numbers(["x"], nullable=["x"]).encode(batch)
    assert caught.value.reason == "UNUSABLE_VALUES"


def test_numbers_up_to_the_ends_of_float32_are_taken() -> None:
    ends = [3.4028234663852886e38, -3.4028234663852886e38, None]
    encoded = Numbers(["x"], nullable=["x"]).encode(pa.record_batch({"x": pa.array(ends, pa.float64())}))
    assert encoded[:2, 0].tolist() == ends[:2]
    assert encoded[2].isnan()


def test_a_column_that_does_not_exist_is_refused(table: Table) -> None:
    with pytest.raises(InvalidArgument, match="no column twice") as caught:
        Reader(table, [Numbers(["number", "twice"])], batch_rows=8)
    assert caught.value.reason == "UNKNOWN_COLUMN"


@pytest.mark.parametrize("version", [0, 7])
def test_a_table_or_version_that_does_not_exist_is_refused(tmp_path: Path, uri: str, version: int) -> None:
    with pytest.raises(NotFound) as caught:
        Table.open(str(tmp_path / "none") if version == 0 else uri, version)
    assert caught.value.reason == "TABLE_NOT_FOUND"


def test_wide_rows_are_decoded_a_few_at_a_time(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked for: batches are put together from what is decoded, windows and places too."""
    encoding = Noting(["number", "half"])
    whole = list(Reader(table, [encoding], batch_rows=70, shuffle=Shuffle(3, 90)))
    assert max(encoding.seen) == 60
    monkeypatch.setattr("headrace.datasets.encoding.DECODED_BYTES", 7 * encoding.row_bytes)
    encoding.seen.clear()
    reader = Reader(table, [encoding], batch_rows=70, shuffle=Shuffle(3, 90))
    first = next(iter(reader))
    resumed = Reader(table, [encoding], batch_rows=70, shuffle=Shuffle(3, 90))
    resumed.load_state_dict(reader.state_dict())
    for [expected], [found] in zip(whole, [first, *resumed], strict=True):
        assert torch.equal(found, expected)
    assert max(encoding.seen) == 7


def test_a_row_that_takes_more_than_is_decoded_at_a_time_comes_alone() -> None:
    image = TensorType("uint8", (2048, 2048))
    assert rows_at_a_time([Flat([("image", TensorType("uint8", (1024, 1024)))])]) == 4
    assert rows_at_a_time([Flat([("image", image), ("other", None)]), Classes("label", [0])]) == 1
    assert rows_at_a_time([Tensors("image", image)]) == 4
