"""Rows of a dataset version into a training loop: the reader against a plain torch DataLoader.

    python benchmarks/reader.py [--rows 2000000] [--rounds 5] [--json FILE]

A table of 30 float features, a key and a label, on local disk and, since it was just written, in the page
cache. Each side feeds the same loop: a step of a logistic regression for each batch of 4,096 rows. The sides:

- reader, shuffled over the whole epoch in windows of 131,072 rows;
- reader, the same, and only the training split (70 %) by the keys' hashes; counted are rows that it gave;
- DataLoader with two worker processes over an IterableDataset that reads row groups of the same files with
  pyarrow, in an order drawn for the epoch, shuffles each, and gives batches;
- DataLoader with two workers over a dataset of single rows, as tutorials have it (a tenth of the rows).

All sides take turns in each round. PyTorch has one thread in each process. Beside rows/s stands what a
million rows cost in processor time, loop included: it depends less on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import deltalake
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from setting import machine
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from headrace.datasets import Classes, Numbers, Reader, Selection, Shuffle, Table
from headrace.splits import ByKey, Shares
from headrace.training.run.data import InSplit

FEATURES = [f"x{index}" for index in range(30)]
BATCH_ROWS = 4096
FILE_ROWS = 250_000
WORKERS = 2
SHARES = Shares(train=0.7, validation=0.15, test=0.15)
BAR_RATE = 1_000_000
Batches = Iterable[tuple[Tensor, Tensor]]


def write(folder: Path, rows: int) -> None:
    """Make the table, in files as a compaction leaves them."""
    random = np.random.default_rng(0)
    for start in range(0, rows, FILE_ROWS):
        count = min(FILE_ROWS, rows - start)
        columns: dict[str, object] = {"key": [f"patient-{start + row:08}" for row in range(count)]}
        columns |= {name: random.random(count, dtype=np.float32) for name in FEATURES}
        columns["label"] = pa.array(random.integers(0, 2, count), pa.int8())
        deltalake.write_deltalake(str(folder), pa.table(columns), mode="append")


class RowGroups(IterableDataset[tuple[Tensor, Tensor]]):
    """What is written by hand where somebody cares: whole row groups, shuffled, as batches."""

    def __init__(self, files: list[str], epoch: int) -> None:
        self._files = files
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for group in self._groups():
            columns = [group.column(name).to_numpy() for name in FEATURES]
            features = torch.from_numpy(np.stack(columns, axis=1))
            labels = torch.from_numpy(group.column("label").to_numpy().astype(np.int64))
            order = torch.randperm(len(labels))
            for batch in order.split(BATCH_ROWS):
                yield features[batch], labels[batch]

    def _groups(self) -> Iterator[pa.Table]:
        worker = get_worker_info()
        files = [pq.ParquetFile(file) for file in self._files]
        groups = [(file, index) for file in files for index in range(file.num_row_groups)]
        order = np.random.default_rng(self._epoch).permutation(len(groups))
        for index in order[worker.id :: worker.num_workers]:
            file, group = groups[index]
            yield file.read_row_group(group, [*FEATURES, "label"], use_threads=False)


class SingleRows(RowGroups):
    """What tutorials have: a row at a time, put into batches by the DataLoader."""

    def __init__(self, files: list[str], epoch: int, rows: int) -> None:
        super().__init__(files, epoch)
        self._rows = rows

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        left = self._rows // WORKERS
        for group in self._groups():
            for row in group.slice(0, left).to_pylist():
                yield torch.tensor([row[name] for name in FEATURES]), torch.tensor(row["label"])
            left -= min(left, len(group))


def train(batches: Batches) -> tuple[float, float]:
    """Feed the loop; rows/s, the wait for the first batch included, and processor seconds a million rows."""
    model = nn.Linear(len(FEATURES), 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    rows, started, spent = 0, time.perf_counter(), processor_seconds()
    for features, labels in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(features), labels).backward()
        optimizer.step()
        rows += len(features)
    return rows / (time.perf_counter() - started), (processor_seconds() - spent) / rows * 1e6


def processor_seconds() -> float:
    """What this process and its workers that have ended have used."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def sides(folder: Path, rows: int) -> dict[str, Callable[[int], Batches]]:
    """Each side, by its name, as what makes its batches for an epoch."""
    table = Table.open(str(folder), deltalake.DeltaTable(str(folder)).version())
    files = [str(folder / part.file) for part in table.parts if part.group == 0]
    encodings = [Numbers(FEATURES), Classes("label", [0, 1])]

    def reader(epoch: int, selection: Selection | None = None) -> Batches:
        return Reader(  # type: ignore[return-value]
            table, encodings, batch_rows=BATCH_ROWS, selection=selection, shuffle=Shuffle(epoch)
        )

    training = InSplit(0, ByKey("key", SHARES, few=0), "label")
    return {
        "reader": reader,
        "reader, split": lambda epoch: reader(epoch, training),
        "DataLoader, row groups": lambda epoch: DataLoader(
            RowGroups(files, epoch), batch_size=None, num_workers=WORKERS
        ),
        "DataLoader, rows": lambda epoch: DataLoader(
            SingleRows(files, epoch, rows // 10), batch_size=BATCH_ROWS, num_workers=WORKERS
        ),
    }


def measure(folder: Path, rows: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """What `train` says of each side in each round."""
    figures: dict[str, list[tuple[float, float]]] = {}
    for number in range(rounds + 1):
        for name, batches in sides(folder, rows).items():
            measured = train(batches(number))
            if number:  # the first round warms up
                figures.setdefault(name, []).append(measured)
    return figures


def main() -> int:
    """Measure, print, and answer 0 where the bar is kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="headrace-benchmark-") as folder:
        write(Path(folder), arguments.rows)
        rounds = measure(Path(folder), arguments.rows, arguments.rounds)
    where = machine("torch", "pyarrow", "deltalake")
    for name, value in where.items():
        print(f"{name:10} {value}")
    print(f"\n{arguments.rows:,} rows of {len(FEATURES)} floats, median of {arguments.rounds} rounds\n")
    medians = {
        name: [statistics.median(column) for column in zip(*values, strict=True)]
        for name, values in rounds.items()
    }
    for name, (rate, cost) in medians.items():
        bar = f"  (bar: {BAR_RATE:,})" if name == "reader" else ""
        print(f"{name:24} {rate:>10,.0f} rows/s {cost:>8.2f} s a million{bar}")
    ratio = medians["reader"][0] / medians["DataLoader, row groups"][0]
    print(f"\nreader : DataLoader over row groups {ratio:.2f}")
    if arguments.json:
        figures = {"machine": where, "rounds": rounds, "medians": medians, "ratio": ratio}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    kept = medians["reader"][0] >= BAR_RATE
    print("the bar is kept" if kept else "the bar is missed")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
