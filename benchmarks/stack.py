"""How long a stack takes to start, and how much memory it needs when idle.

Starts the embedded stack twice in a fresh data folder (the second start is the one that people meet every
day), waits until it is idle, and adds up the proportional set size of all its processes: shared pages count
once, divided among those that share them.

Usage: python benchmarks/stack.py [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from headrace.embedded import commands

START_BAR_SECONDS = 10.0
MEMORY_BAR_MIB = 1536.0
IDLE_SECONDS = 10.0

console = Console(highlight=False)


def started(data: Path) -> float:
    """Start the stack; the seconds until every part was ready."""
    began = time.monotonic()
    commands.up(data)
    return time.monotonic() - began


def memory_by_part(data: Path) -> dict[str, float]:
    """Proportional set size of each part with its children, in MiB, and of the supervisor."""
    sizes: dict[str, float] = {}
    pids = {part.name: part.pid for part in commands.status(data) if part.pid}
    pids["supervisor"] = json.loads((data / "stack.json").read_text())["pid"]
    of_parts = set(pids.values())
    for name, pid in pids.items():
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)] if name != "supervisor" else [process]
        sizes[name] = sum(
            member.memory_full_info().pss
            for member in family
            if member.pid == pid or member.pid not in of_parts
        ) / (1 << 20)
    return sizes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="starts after the first one")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="headrace-benchmark-") as folder:
        data = Path(folder) / "data"
        first = started(data)
        commands.down(data)
        again = []
        for index in range(arguments.rounds):
            again.append(started(data))
            if index < arguments.rounds - 1:
                commands.down(data)
        time.sleep(IDLE_SECONDS)
        memory = memory_by_part(data)
        commands.down(data)

    figures = {
        "machine": f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores",
        "date": datetime.now(UTC).date().isoformat(),
        "first_start_seconds": round(first, 2),
        "start_seconds": [round(seconds, 2) for seconds in again],
        "start_seconds_median": round(statistics.median(again), 2),
        "idle_memory_mib": {name: round(size, 1) for name, size in sorted(memory.items())},
        "idle_memory_mib_total": round(sum(memory.values()), 1),
    }
    table = Table(title=f"Embedded stack ({figures['machine']}, {figures['date']})")
    for heading in ("what", "measured", "bar"):
        table.add_column(heading)
    table.add_row("first start", f"{first:.1f} s", "-")
    table.add_row("start, median", f"{figures['start_seconds_median']} s", f"{START_BAR_SECONDS:g} s")
    table.add_row("idle memory", f"{figures['idle_memory_mib_total']} MiB", f"{MEMORY_BAR_MIB:g} MiB")
    for name, size in sorted(memory.items()):
        table.add_row(f"  {name}", f"{size:.0f} MiB", "")
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
