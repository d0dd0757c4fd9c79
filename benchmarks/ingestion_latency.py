"""How long an event takes from its producer to where readers of the dataset see it.

    python benchmarks/ingestion_latency.py [--rate 1000] [--seconds 30] [--broker kafka] [--json FILE]

Two loads, one after the other: a steady one of `--rate` events a second, and single events on an idle topic.
An event's time runs from just before it is handed to the producer until the file that makes its commit
visible is in the table's log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq
from aiokafka import AIOKafkaProducer
from ingestion import DATASET, apply, described, headers_of, payload, started_parts
from setting import Service, machine

from headrace.messaging.topics import SAMPLES

BAR_P99_SECONDS, BAR_IDLE_SECONDS = 1.5, 1.0
_TICK_SECONDS: Final = 0.01
_IDLE_EVENTS: Final = 15
_IDLE_SECONDS: Final = 1.0


async def send(producer: AIOKafkaProducer, numbers: Sequence[int]) -> None:
    """Send events that say when they were."""
    rng = random.Random(numbers[0])
    for number in numbers:
        headers = [*headers_of(number), ("ce_time", datetime.now(UTC).isoformat().encode())]
        await producer.send(SAMPLES, payload(rng, number, 0.0), key=f"p{number}".encode(), headers=headers)


async def at_rate(producer: AIOKafkaProducer, first: int, count: int, tick: float, each: int) -> None:
    """Send `count` events, `each` of them every `tick` seconds."""
    started = time.perf_counter()
    for index in range(0, count, each):
        await asyncio.sleep(max(0.0, started + index // each * tick - time.perf_counter()))
        await send(producer, range(first + index, first + index + each))
    await producer.flush()


def seconds_until_visible(table: Path, first: int) -> list[float]:
    """For each event from number `first` on, in any order."""
    found: list[float] = []
    for entry in sorted(table.glob("_delta_log/*.json")):
        visible = entry.stat().st_mtime
        for action in map(json.loads, entry.read_text().splitlines()):
            if "add" not in action:
                continue
            rows = pq.read_table(table / action["add"]["path"], columns=["_event_id", "_event_time"])
            for name, sent in zip(*(column.to_pylist() for column in rows.columns), strict=True):
                if int(name.removeprefix("event-")) >= first:
                    found.append(visible - sent.timestamp())
    return found


async def stored(service: Service, rows: int) -> None:
    """Wait until the dataset has so many."""
    while True:
        if (await described(service)).row_count >= rows:
            return
        await asyncio.sleep(0.1)


async def measure(folder: Path, broker: str, rate: int, seconds: int) -> dict[str, float]:
    """Both loads."""
    async with AsyncExitStack() as stack:
        [service], bootstrap = await started_parts(folder, broker, stack)
        await service.start()
        await apply(service)
        table = folder / "store" / "datasets" / DATASET
        count = rate * seconds
        async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks=1) as producer:
            # What the first batch costs once is not what is asked for.
            warm_up = rate
            await at_rate(producer, 0, warm_up, _TICK_SECONDS, max(1, int(rate * _TICK_SECONDS)))
            await at_rate(producer, warm_up, count, _TICK_SECONDS, max(1, int(rate * _TICK_SECONDS)))
            await stored(service, warm_up + count)
            steady = seconds_until_visible(table, warm_up)
            await at_rate(producer, warm_up + count, _IDLE_EVENTS, _IDLE_SECONDS, 1)
            await stored(service, warm_up + count + _IDLE_EVENTS)
        idle = seconds_until_visible(table, warm_up + count)
    return {
        "events": len(steady),
        "p50_seconds": float(np.quantile(steady, 0.5)),
        "p99_seconds": float(np.quantile(steady, 0.99)),
        "max_seconds": max(steady),
        "idle_p50_seconds": float(np.quantile(idle, 0.5)),
        "idle_max_seconds": max(idle),
    }


def main() -> int:
    """Measure, print, and answer 0 where the bars are kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=int, default=1000, help="events a second")
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--broker", choices=["kafka", "embedded"], default="kafka")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-benchmark-", ignore_cleanup_errors=True) as folder:
        figures = asyncio.run(measure(Path(folder), arguments.broker, arguments.rate, arguments.seconds))
    where = machine("aiokafka", "deltalake", "pyarrow")
    for name, value in where.items():
        print(f"{name:10} {value}")
    print(f"\n{figures['events']:,.0f} events at {arguments.rate:,} a second, broker: {arguments.broker}\n")
    print(f"p50               {figures['p50_seconds']:>8.3f} s")
    print(f"p99               {figures['p99_seconds']:>8.3f} s (bar: {BAR_P99_SECONDS})")
    print(f"longest           {figures['max_seconds']:>8.3f} s")
    print(f"idle topic, p50   {figures['idle_p50_seconds']:>8.3f} s")
    print(f"idle, longest     {figures['idle_max_seconds']:>8.3f} s (bar: {BAR_IDLE_SECONDS})")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": where, "figures": figures}, indent=1) + "\n")
    kept = figures["p99_seconds"] < BAR_P99_SECONDS and figures["idle_max_seconds"] < BAR_IDLE_SECONDS
    print("\nthe bars are kept" if kept else "\na bar is missed")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
