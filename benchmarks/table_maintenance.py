"""What maintenance does for a dataset's table.

    python benchmarks/table_maintenance.py [--commits 2000] [--rounds 5] [--json FILE]

Two tables get the same commits of 50 rows, 4 a second by the default batches, and a version after every
hundredth. One is maintained as the service does it, once a minute. Measured, medians of the rounds: opening
the table, opening it at a version from the middle, and reading all rows of either; also the files, and how
long maintenance took in all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import deltalake
import pyarrow as pa
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
VERSION_EVERY = 100
MAINTENANCE_EVERY = 240
NOW = datetime(2026, 1, 2, tzinfo=UTC)
FEATURES = tuple(Field(f"f{number}", FieldType.FLOAT32) for number in range(10))
SCHEMA = Schema("id", FEATURES, Field("label", FieldType.INT8))
DATASET = Dataset("small", SCHEMA, Cut(), 1, NOW, NOW)
SOURCE = SourcePartition("cluster", "samples", 0)


def append_of(start: int) -> Append:
    """A commit's rows."""
    rows = [
        {
            "id": f"sample-{offset}",
            **{field.name: offset / (number + 1) for number, field in enumerate(FEATURES)},
            "label": offset % 2,
            "_event_id": f"event-{offset}",
            "_event_time": NOW,
            "_topic": SOURCE.topic,
            "_partition": SOURCE.partition,
            "_offset": offset,
        }
        for offset in range(start, start + ROWS)
    ]
    schema = pa.unify_schemas([stored_schema(SCHEMA), SOURCE_COLUMNS])
    return Append(DATASET, pa.Table.from_pylist(rows, schema=schema), [Span(SOURCE, start, start + ROWS)])


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
    tables = DeltaTables(lambda name: (folder / name).as_uri(), {})
    settings = Settings()
    maintenance = DeltaMaintenance(
        tables.uri,
        {},
        clock=utc_now,
        target_bytes=settings.merge_target_bytes,
        min_files=settings.merge_min_files,
        # Nobody reads or writes beside it.
        retention_hours=0,
    )
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
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    arguments = parser.parse_args()

    results = {}
    for name, maintained in (("as written", False), ("maintained", True)):
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(Path(folder), arguments.commits, arguments.rounds, maintained=maintained)
    report = {"machine": machine("deltalake", "pyarrow"), "commits": arguments.commits, "results": results}
    for name, value in report["machine"].items():  # type: ignore[attr-defined]
        print(f"{name:10} {value}")
    print(f"\n{arguments.commits:,} commits of {ROWS} rows\n")
    print(f"{'':18}" + "".join(f" {name:>12}" for name in results))
    for figure in results["maintained"]:
        print(f"{figure:18}" + "".join(f" {figures[figure]:>12,.1f}" for figures in results.values()))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
