"""Rows of a table as batches of tensors: selected, sharded, shuffled, read ahead, resumable at any batch."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.datasets.encoding import Encoding, rows_at_a_time
from headrace.datasets.plan import Shard, Shuffle, parts_of, permutation
from headrace.datasets.prefetching import Prefetching
from headrace.datasets.table import Part, Table
from headrace.errors import InvalidArgument

Batch: TypeAlias = tuple[Tensor, ...]
# One window waits while the next is filled and the last one is used up: memory holds three.
AHEAD_WINDOWS = 1
# In the table's order a window is what Arrow decodes at a time, which is small.
AHEAD_BATCHES = 4
AHEAD_DECODED = 1


WHOLE: Final = Shard()


class Selection(Protocol):
    """Which rows are wanted, by their values alone."""

    @property
    def columns(self) -> Sequence[str]:
        """The columns that it looks at; they are read besides those of the encodings."""

    def mask(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Whether each row is wanted."""


@dataclass(frozen=True, slots=True)
class Position:
    """The first row not yet delivered: `offset` rows into the window that begins at a part's row."""

    epoch: int = 0
    window: int = 0
    part: int = 0
    row: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """Rows in the order in which they are delivered, and where they begin."""

    start: Position
    columns: Batch

    def __len__(self) -> int:
        return len(self.columns[0])


class Reader:
    """Batches of `batch_rows` rows, one tensor for each encoding; an epoch's last batch may be smaller.

    Each `for` loop goes over what is left of the present epoch, of which every wanted row comes once over all
    shards. Leaving a loop early loses nothing: the next one goes on after the batch that was delivered last.
    `state_dict()` holds that place, and a reader of the same rows takes it over by `load_state_dict()`.

    A batch may share memory with its neighbours: copy what is to be changed or kept for long. Errors met
    while reading ahead are raised by the loop, after the batches before them.
    """

    def __init__(
        self,
        table: Table,
        encodings: Sequence[Encoding],
        *,
        batch_rows: int,
        selection: Selection | None = None,
        shuffle: Shuffle | None = None,
        shard: Shard = WHOLE,
    ) -> None:
        """Without `shuffle` rows come in the table's order. Raises InvalidArgument/UNKNOWN_COLUMN."""
        if batch_rows < 1:
            raise ValueError(f"a batch has at least one row, not {batch_rows}")
        columns = [name for encoding in encodings for name in encoding.columns]
        if selection is not None:
            columns += selection.columns
        self._columns = tuple(dict.fromkeys(columns))
        table.require(self._columns)
        self._table = table
        self._encodings = tuple(encodings)
        self._decoded_rows = rows_at_a_time(encodings)
        self._batch_rows = batch_rows
        self._selection = selection
        self._shuffle = shuffle
        self._shard = shard
        self._position = Position()
        what = repr((table.version, table.parts, shuffle, shard))
        self._identity = hashlib.sha256(what.encode()).hexdigest()

    @property
    def epoch(self) -> int:
        """How many epochs have been delivered whole."""
        return self._position.epoch

    def state_dict(self) -> dict[str, int | str]:
        """Return the place after the batch that was delivered last."""
        return {"rows": self._identity, **asdict(self._position)}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Go on where another reader was.

        Selection, encodings and the size of batches are not compared: the selection must be the same.
        Raises InvalidArgument/FOREIGN_READER_STATE for other rows or another order.
        """
        if state.get("rows") != self._identity:
            raise InvalidArgument(
                "FOREIGN_READER_STATE",
                "the state is of a reader of another table version, order or shard; begin an epoch anew",
            )
        self._position = Position(**{name: int(state[name]) for name in asdict(Position())})

    def __iter__(self) -> Iterator[Batch]:
        pieces: list[Batch] = []
        missing = self._batch_rows
        ahead = AHEAD_BATCHES if self._shuffle is None else AHEAD_WINDOWS
        with Prefetching(self._windows(self._position), ahead) as windows:
            delivered = self._position.offset
            for window in windows:
                offset = min(delivered, len(window))
                delivered -= offset
                while offset < len(window):
                    taken = min(missing, len(window) - offset)
                    pieces.append(tuple(column[offset : offset + taken] for column in window.columns))
                    offset, missing = offset + taken, missing - taken
                    if not missing:
                        self._position = replace(window.start, offset=offset)
                        yield _joined(pieces)
                        pieces, missing = [], self._batch_rows
        if pieces:
            self._position = replace(window.start, offset=len(window))
            yield _joined(pieces)
        self._position = Position(epoch=self._position.epoch + 1)

    def _windows(self, start: Position) -> Generator[Window, None, None]:
        parts = parts_of(self._table.parts, self._shuffle, self._shard, start.epoch)
        if self._shuffle is None:
            yield from self._in_order(parts, start)
        else:
            yield from self._shuffled(parts, start, self._shuffle)

    def _in_order(self, parts: Sequence[Part], start: Position) -> Generator[Window, None, None]:
        for place, _, columns in self._selected(parts, start):
            yield Window(place, columns)

    def _shuffled(
        self, parts: Sequence[Part], start: Position, shuffle: Shuffle
    ) -> Generator[Window, None, None]:
        size = max(1, min(shuffle.window_rows, self._table.rows))
        begin, filled = start, 0
        buffers: Batch = ()
        order = permutation(size, shuffle.seed, begin.epoch, begin.window)
        for place, numbers, columns in self._selected(parts, start):
            used = 0
            while used < len(numbers):
                if not filled:
                    begin = replace(begin, part=place.part, row=int(numbers[used]), offset=0)
                    buffers = tuple(column.new_empty((size, *column.shape[1:])) for column in columns)
                taken = min(size - filled, len(numbers) - used)
                places = order[filled : filled + taken]
                for buffer, column in zip(buffers, columns, strict=True):
                    buffer.index_copy_(0, places, column[used : used + taken])
                used, filled = used + taken, filled + taken
                if filled == size:
                    yield Window(begin, buffers)
                    begin = replace(begin, window=begin.window + 1)
                    order = permutation(size, shuffle.seed, begin.epoch, begin.window)
                    filled = 0
        if filled:
            kept = order[:filled].sort().values
            yield Window(begin, tuple(buffer.index_select(0, kept) for buffer in buffers))

    def _selected(
        self, parts: Sequence[Part], start: Position
    ) -> Generator[tuple[Position, NDArray[np.int64], Batch], None, None]:
        """Read wanted rows: where they begin, their numbers in their part, and their tensors."""
        # Decoded in a thread of its own, so that it and what follows keep two cores busy.
        with Prefetching(self._decoded(parts, start), AHEAD_DECODED) as decoded:
            for place, batch in decoded:
                numbers = np.arange(place.row, place.row + len(batch))
                if self._selection is not None:
                    wanted = self._selection.mask(batch)
                    if not wanted.all():
                        batch, numbers = batch.filter(pa.array(wanted)), numbers[wanted]
                if len(batch):
                    yield place, numbers, tuple(encoding.encode(batch) for encoding in self._encodings)

    def _decoded(
        self, parts: Sequence[Part], start: Position
    ) -> Generator[tuple[Position, pa.RecordBatch], None, None]:
        for index in range(start.part, len(parts)):
            row = start.row if index == start.part else 0
            for batch in self._table.scan(parts[index], self._columns, row, self._decoded_rows):
                yield replace(start, part=index, row=row, offset=0), batch
                row += len(batch)


def _joined(pieces: Sequence[Batch]) -> Batch:
    if len(pieces) == 1:
        return pieces[0]
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))
