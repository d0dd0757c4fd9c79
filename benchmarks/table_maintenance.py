"""What maintenance does for a dataset's table.

    python benchmarks/table_maintenance.py [--commits 2000] [--rounds 5] [--merged-files 20] [--json FILE]

Two tables get the same commits of 50 rows, 4 a second by the default batches, and a version after every
hundredth. One is maintained as the service does it, once a minute. Measured, medians of the rounds: opening
the table, opening it at a version from the middle, and reading all rows of either; also the files, and how
long maintenance took in all.

Then a process of its own merges files of 100,000 rows, after some small ones: how long each merge takes, and
how far its resident memory rises above what it was before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import deltalake
import pyarrow as pa
from ingestion import resident_mib
from setting import machine

from headrace.ingestion.domain.columnar import stored_schema
from headrace.ingestion.domain.dataset import Dataset, SourcePartition
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Schema
from headrace.ingestion.domain.source import SOURCE_COLUMNS
from headrace.ingestion.settings import Settings
from headrace.ingestion.storage.delta import DeltaTables
from headrace.ingestion.storage.maintenance import DeltaMaintenance
from headrace.ingestion.use_cases.ports import Append, Span
from headrace.runtime.clock import utc_now

ROWS = 50
LARGE_ROWS = 100_000
_MIB = 1 << 20
VERSION_EVERY = 100
MAINTENANCE_EVERY = 240
NOW = datetime(2026, 1, 2, tzinfo=UTC)
FEATURES = tuple(Field(f"f{number}", FieldType.FLOAT32) for number in range(10))
SCHEMA = Schema("id", FEATURES, Field("label", FieldType.INT8))
DATASET = Dataset("small", SCHEMA, Cut(), 1, NOW, NOW)
SOURCE = SourcePartition("cluster", "samples", 0)


def append_of(start: int, rows: int = ROWS) -> Append:
    """A commit's rows."""
    offsets = range(start, start + rows)
    values: dict[str, Sequence[object]] = {
        "id": [f"sample-{offset}" for offset in offsets],
        **{
            field.name: [offset / (number + 1) for offset in offsets] for number, field in enumerate(FEATURES)
        },
        "label": [offset % 2 for offset in offsets],
        "_event_id": [f"event-{offset}" for offset in offsets],
        "_event_time": [NOW] * rows,
        "_topic": [SOURCE.topic] * rows,
        "_partition": [SOURCE.partition] * rows,
        "_offset": offsets,
    }
    schema = pa.unify_schemas([stored_schema(SCHEMA), SOURCE_COLUMNS])
    columns = [
        pa.array(values[field.name], field.type) if field.name in values else pa.nulls(rows, field.type)
        for field in schema
    ]
    return Append(DATASET, pa.table(columns, schema=schema), [Span(SOURCE, start, start + rows)])


def tables_below(folder: Path) -> DeltaTables:
    """Tables in a folder."""
    return DeltaTables(lambda name: (folder / name).as_uri(), {})


def maintenance_below(folder: Path) -> DeltaMaintenance:
    """Their maintenance, by the default settings; nobody reads or writes beside it."""
    settings = Settings()
    return DeltaMaintenance(
        lambda name: (folder / name).as_uri(),
        {},
        clock=utc_now,
        target_bytes=settings.merge_target_bytes,
        min_files=settings.merge_min_files,
        retention_hours=0,
    )


@dataclass(frozen=True)
class Merged:
    """A merge: its files and their bytes, seconds, and MiB that the process held more than before at most."""

    files: int
    size: int
    seconds: float
    peak_mib: float


def merge(small: Path, large: Path) -> list[Merged]:
    """Merge the files of the large table, when those of the small one have shown what code takes."""
    assert maintenance_below(small).merge(DATASET).merged
    maintenance = maintenance_below(large)
    merges: list[Merged] = []
    while True:
        # The kernel's largest resident size begins anew.
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_mib(os.getpid(), "VmRSS")
        started = time.perf_counter()
        done = maintenance.merge(DATASET)
        if not done.merged:
            return merges
        seconds = time.perf_counter() - started
        merges.append(Merged(done.merged, done.size, seconds, resident_mib(os.getpid()) - before))


def measure_merges(folder: Path, files: int) -> list[Merged]:
    """Merges of so many large files."""
    small, large = folder / "small", folder / "large"
    for where, count, rows in (
        (small, Settings().merge_min_files, ROWS),
        (large, files, LARGE_ROWS),
    ):
        tables = tables_below(where)
        for number in range(count):
            tables.append(append_of(number * rows, rows))
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(merge, small, large).result()


def median_ms(rounds: int, work: Callable[[], object]) -> float:
    """How long it takes, in milliseconds."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


def figures_of(uri: str, middle: int, rounds: int) -> dict[str, float]:
    """What a reader of the newest table and of the version in the middle waits for."""

    def read(version: int | None) -> None:
        deltalake.DeltaTable(uri, version=version).to_pyarrow_table()

    return {
        "open_ms": median_ms(rounds, lambda: deltalake.DeltaTable(uri)),
        "open_version_ms": median_ms(rounds, lambda: deltalake.DeltaTable(uri, version=middle)),
        "read_ms": median_ms(rounds, lambda: read(None)),
        "read_version_ms": median_ms(rounds, lambda: read(middle)),
        "files": len(deltalake.DeltaTable(uri).file_uris()),
        "files_on_disk": len(list(Path(uri).glob("*.parquet"))),
    }


def measure(folder: Path, commits: int, rounds: int, *, maintained: bool) -> dict[str, float]:
    """Figures of a table with so many commits."""
    tables, maintenance = tables_below(folder), maintenance_below(folder)
    cut: list[int] = []
    spent = 0.0
    for number in range(commits):
        tables.append(append_of(number * ROWS))
        if number % VERSION_EVERY == VERSION_EVERY - 1:
            cut.append(tables.state_since(DATASET, cut[-1] if cut else -1).table_version)
        if maintained and number % MAINTENANCE_EVERY == MAINTENANCE_EVERY - 1:
            started = time.perf_counter()
            while maintenance.merge(DATASET).merged:
                pass
            spent += time.perf_counter() - started
    started = time.perf_counter()
    if maintained:
        maintenance.remove_unneeded(DATASET, cut)
    spent += time.perf_counter() - started
    return {**figures_of(str(folder / DATASET.name), cut[len(cut) // 2], rounds), "maintenance_s": spent}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--commits", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--merged-files", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    arguments = parser.parse_args()

    results = {}
    for name, maintained in (("as written", False), ("maintained", True)):
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(Path(folder), arguments.commits, arguments.rounds, maintained=maintained)
    with tempfile.TemporaryDirectory() as folder:
        merges = measure_merges(Path(folder), arguments.merged_files)
    report = {
        "machine": machine("deltalake", "pyarrow"),
        "commits": arguments.commits,
        "results": results,
        "merges": [asdict(merged) for merged in merges],
    }
    for name, value in report["machine"].items():  # type: ignore[attr-defined]
        print(f"{name:10} {value}")
    print(f"\n{arguments.commits:,} commits of {ROWS} rows\n")
    print(f"{'':18}" + "".join(f" {name:>12}" for name in results))
    for figure in results["maintained"]:
        print(f"{figure:18}" + "".join(f" {figures[figure]:>12,.1f}" for figures in results.values()))
    for merged in merges:
        print(
            f"\nmerging {merged.files} files of {LARGE_ROWS:,} rows, {merged.size / _MIB:.0f} MiB: "
            f"{merged.seconds:.2f} s, {merged.peak_mib:.0f} MiB of memory at most"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
