"""A day's events through one ingestion process: whether its memory stays flat, and its table in shape.

    python benchmarks/ingestion_day.py [--events 50000000] [--wave 500000] [--broker kafka] [--json FILE]

Events are those of `ingestion.py`. A producer sends them in waves of 50,000 or a multiple, with each a
thousandth as many malformed ones, and the last hundredth of it again, as producers do that got no answer; it
waits where it is two waves ahead.
Versions are cut of each million rows, and the table is maintained beside it. After each wave the process's
memory and what lies on disk are noted. Fifty million events take some 40 GB, most of it Kafka's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import deltalake
from ingestion import DATASET, described, produce, resident_mib, schema, started_parts
from setting import Service, machine

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.api.ingestion.v1 import ingestion_pb2_grpc as api_grpc
from headrace.rpc.client import channel

BAR_GROWTH: Final = 1.1
REPEATED, MALFORMED = 100, 1000
VERSION_ROWS: Final = 1_000_000
_MIB: Final = 1 << 20


@dataclass(frozen=True)
class Noted:
    """What was seen after a wave; MiB."""

    seconds: float
    events: int
    rows: int
    rejected: int
    versions: int
    resident: float
    files: int
    table: float
    log: float


async def apply(service: Service) -> None:
    """Declare the dataset, with versions."""
    request = api.ApplyDatasetRequest(name=DATASET, schema=schema(), cut=api.Cut(rows=VERSION_ROWS))
    async with channel(f"127.0.0.1:{service.grpc_port}") as opened:
        await api_grpc.IngestionServiceStub(opened).ApplyDataset(request)


async def caught_up(service: Service, events: int) -> api.Dataset:
    """Wait until so many events are rows or rejections."""
    while True:
        dataset = await described(service)
        if dataset.row_count + dataset.rejected_count >= events:
            return dataset
        await asyncio.sleep(0.5)


def noted(service: Service, table: Path, dataset: api.Dataset, events: int, seconds: float) -> Noted:
    """Look at memory and disk."""
    assert service.pid is not None
    sizes = {path: path.stat().st_size for path in table.rglob("*") if path.is_file()}
    log = sum(size for path, size in sizes.items() if "_delta_log" in path.parts)
    return Noted(
        seconds=seconds,
        events=events,
        rows=dataset.row_count,
        rejected=dataset.rejected_count,
        versions=dataset.latest_version,
        resident=resident_mib(service.pid, "VmRSS"),
        files=len(deltalake.DeltaTable(str(table)).file_uris()),
        table=(sum(sizes.values()) - log) / _MIB,
        log=log / _MIB,
    )


async def measure(folder: Path, broker: str, events: int, wave: int) -> tuple[list[Noted], int, float]:
    """All waves: what was noted after each, how many events were malformed, and the process's peak."""
    notes: list[Noted] = []
    async with AsyncExitStack() as stack:
        [service], bootstrap = await started_parts(folder, broker, stack)
        await service.start()
        assert service.pid is not None
        await apply(service)
        started, malformed = time.perf_counter(), 0
        for first in range(0, events, wave):
            count = min(wave, events - first)
            await produce(bootstrap, count, 0.0, first=first)
            again = count // REPEATED
            await produce(bootstrap, again, 0.0, first=first + count - again)
            await produce(bootstrap, count // MALFORMED, 1.0, first=events + first)
            malformed += count // MALFORMED
            dataset = await caught_up(service, first - wave)
            note = noted(
                service,
                folder / "store" / "datasets" / DATASET,
                dataset,
                first + count,
                time.perf_counter() - started,
            )
            notes.append(note)
            print(
                f"{note.seconds:7.0f} s {note.events:>12,} sent {note.rows:>12,} rows {note.rejected:>8,} "
                f"rejected {note.versions:>4} versions {note.resident:5.0f} MiB resident "
                f"{note.files:>5} files {note.table:>7,.0f} MiB table {note.log:6.1f} MiB log",
                flush=True,
            )
        dataset = await caught_up(service, events + malformed)
        seconds = time.perf_counter() - started
        notes.append(noted(service, folder / "store" / "datasets" / DATASET, dataset, events, seconds))
        return notes, malformed, resident_mib(service.pid)


def main() -> int:
    """Measure, print, and answer 0 where nothing is missing or twice, and memory stays flat."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=50_000_000)
    parser.add_argument("--wave", type=int, default=500_000)
    parser.add_argument("--broker", choices=["kafka", "embedded"], default="kafka")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-benchmark-", ignore_cleanup_errors=True) as folder:
        notes, malformed, peak = asyncio.run(
            measure(Path(folder), arguments.broker, arguments.events, arguments.wave)
        )
    where = machine("aiokafka", "deltalake", "pyarrow")
    for name, value in where.items():
        print(f"{name:10} {value}")
    last = notes[-1]
    # The first waves fill pools and caches.
    settled = notes[len(notes) // 5 :]
    part = max(1, len(settled) // 5)
    early, late = (
        statistics.median(note.resident for note in some) for some in (settled[:part], settled[-part:])
    )
    whole = (last.rows, last.rejected) == (arguments.events, malformed)
    print(f"\n{last.events:,} events, and each hundredth again, in {last.seconds:,.0f} s")
    print(f"rows              {last.rows:>12,} {'each once' if whole else 'MISSING OR TWICE'}")
    print(f"rejected          {last.rejected:>12,} of {malformed:,}")
    print(f"events/s          {last.events / last.seconds:>12,.0f}")
    print(f"resident, early   {early:>12,.0f} MiB")
    print(f"resident, late    {late:>12,.0f} MiB (bar: {BAR_GROWTH:g} times that)")
    print(f"peak memory       {peak:>12,.0f} MiB")
    print(f"table             {last.table:>12,.0f} MiB in {last.files:,} files, {last.versions} versions")
    print(f"its log           {last.log:>12,.1f} MiB")
    if arguments.json:
        figures = {"peak_mib": peak, "notes": [asdict(note) for note in notes]}
        arguments.json.write_text(json.dumps({"machine": where, "figures": figures}, indent=1) + "\n")
    kept = whole and late < BAR_GROWTH * early
    print("\nthe bars are kept" if kept else "\na bar is missed")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
