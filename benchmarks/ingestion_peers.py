"""Events on Kafka to rows of a table: Headrace against Spark Structured Streaming and Flink.

    python benchmarks/ingestion_peers.py [--events 1000000] [--warm-up 500000] [--rounds 3] [--json FILE]

All three read the same topic of the same Apache Kafka, one after the other: JSON events of about 190 bytes
on four partitions, as in `ingestion.py`. Each is one process on this machine's cores, which the broker
shares, and each writes exactly once:

    headrace   the service with its default settings: every field judged, repetitions left out, rows hashed,
               where each came from stored beside it; to Delta
    spark      from_json by the declared columns, `--spark-batch` events a batch; to Delta
    flink      its JSON format by the declared columns, a checkpoint each second; to Parquet files, which
               checkpoints complete

The engines judge no ranges, keep nothing of what they cannot read, and know no repetitions: less work. They
run in Java, with no Python before them, and are told where the topic ends, so that the last rows wait for no
checkpoint. Their heap is `--heap`.

All are measured warm: from the commit that makes the first `--warm-up` rows visible to the one that makes
the last rows so, by the times at which the table's log or files got their names. Processor time is the
process's own, in that time; memory is the largest resident size that the kernel saw. At the end every table
is read: each event must be a row, once, and have its values.

The engines' jars come from Maven, once, about 500 MB, to `.cache/benchmarks`. All listen on loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path
from time import time
from typing import Final
from xml.etree import ElementTree

import deltalake
import numpy as np
import psutil
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from ingestion import DATASET, FEATURES, apply, described, produce, resident_mib, services_on, started_broker
from setting import Service, machine

from headrace.embedded.parts import Part
from headrace.embedded.parts.kafka import DEPENDENCY_PLUGIN, ApacheKafka
from headrace.messaging.topics import SAMPLES

BAR_MEMORY_SHARE: Final = 0.5
_CACHE: Final = Path(__file__).parent.parent / ".cache" / "benchmarks"
_SOURCES: Final = Path(__file__).parent / "peers"
_COLUMNS: Final = ", ".join(
    ["`id` STRING", "`at` STRING", *(f"`x{index}` FLOAT" for index in range(FEATURES)), "`y` TINYINT"]
)
_READ_SECONDS: Final = 0.2
# Files that one checkpoint completes get their names within this time.
_SAME_COMMIT_SECONDS: Final = 0.2
# Of all that the POMs name, what figures are told apart by.
_NAMED: Final = ("spark-sql_2.13", "delta-spark_4.2_2.13", "flink-clients", "flink-sql-connector-kafka")
# Spark reaches into the JDK; its own launcher says so in the same way.
_OPENED: Final = (
    "java.base/java.lang",
    "java.base/java.lang.invoke",
    "java.base/java.lang.reflect",
    "java.base/java.io",
    "java.base/java.net",
    "java.base/java.nio",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/jdk.internal.ref",
    "java.base/sun.nio.ch",
    "java.base/sun.nio.cs",
    "java.base/sun.security.action",
    "java.base/sun.util.calendar",
)


@dataclass(frozen=True)
class Commit:
    """Rows that became visible at once, and when (Unix seconds)."""

    at: float
    rows: int


@dataclass(frozen=True)
class Reading:
    """What a process and its children had used at a time (Unix seconds)."""

    at: float
    cpu_seconds: float
    peak_mib: float


@dataclass(frozen=True)
class Figures:
    """One side's run, once it was warm."""

    events_per_second: float
    cpu_seconds_per_million: float
    commit_seconds: float
    peak_mib: float


class Peer(Part):
    """A Java program that stores all events of the topic in a folder, and ends."""

    start_seconds = 600.0
    hint = "It needs Java 17 or newer with its compiler and, the first time, Maven."

    def __init__(self, name: str, main: str, folder: Path, heap: str, arguments: Sequence[str]) -> None:
        self.name = name
        super().__init__(folder, folder / "logs")
        self._main = main
        self._heap = heap
        self._arguments = arguments
        self._pom = _SOURCES / name / "pom.xml"
        self._source = _SOURCES / name / f"{main}.java"
        self._jars = _CACHE / f"{name}-{hashlib.sha256(self._pom.read_bytes()).hexdigest()[:12]}"

    async def prepare(self) -> None:
        """Fetch the jars once, and compile the program against them."""
        if not self._jars.exists():
            # Into a folder beside, then renamed: an interrupted download is never taken for a whole one.
            partial = self._jars.with_name(f"{self._jars.name}.{os.getpid()}")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            await self.run_before(
                "mvn", "-q", "-B", "-f", str(self._pom), DEPENDENCY_PLUGIN, f"-DoutputDirectory={partial}"
            )
            partial.rename(self._jars)
        await self.run_before(
            "javac", "-cp", f"{self._jars}/*", "-d", str(self.folder / "classes"), str(self._source)
        )

    def environment(self) -> Mapping[str, str]:
        """Loopback, whatever the machine's name resolves to: Spark asks."""
        return {"SPARK_LOCAL_IP": "127.0.0.1"}

    def command(self) -> Sequence[str]:
        """Run it."""
        return [
            "java",
            f"-Xmx{self._heap}",
            "-XX:+UseParallelGC",
            *(f"--add-opens={package}=ALL-UNNAMED" for package in _OPENED),
            "-cp",
            f"{self.folder / 'classes'}:{self._jars}/*",
            self._main,
            *self._arguments,
        ]


@asynccontextmanager
async def watched(pid: int) -> AsyncIterator[list[Reading]]:
    """What the process and its children use, while the block runs."""
    readings: list[Reading] = []
    peaks: dict[int, float] = {}

    async def watch() -> None:
        root = psutil.Process(pid)
        while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
            with suppress(psutil.Error, OSError, StopIteration):  # one that ends meanwhile
                tree = [root, *root.children(recursive=True)]
                peaks.update({process.pid: resident_mib(process.pid) for process in tree})
                used = sum(sum(process.cpu_times()[:2]) for process in tree)
                readings.append(Reading(time(), used, sum(peaks.values())))
            await asyncio.sleep(_READ_SECONDS)

    watching = asyncio.create_task(watch())
    try:
        yield readings
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def commits_of_delta(table: Path) -> list[Commit]:
    """What each entry of the table's log added, and when it got its name."""
    commits = []
    for entry in sorted(table.glob("_delta_log/*.json")):
        actions = map(json.loads, entry.read_text().splitlines())
        added = [action["add"] for action in actions if "add" in action]
        rows = sum(json.loads(file["stats"])["numRecords"] for file in added if file["dataChange"])
        if rows:
            commits.append(Commit(entry.stat().st_mtime, rows))
    return commits


def commits_of_files(folder: Path) -> list[Commit]:
    """What the files of each checkpoint hold, and when the last of them got its name."""
    # A file's status changes last when it is renamed to what readers look for.
    files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    commits: list[Commit] = []
    for path in sorted(files, key=lambda path: path.stat().st_ctime):
        commit = Commit(path.stat().st_ctime, pq.read_metadata(path).num_rows)
        if commits and commit.at - commits[-1].at < _SAME_COMMIT_SECONDS:
            commit = Commit(commit.at, commits.pop().rows + commit.rows)
        commits.append(commit)
    return commits


def figures(commits: Sequence[Commit], readings: Sequence[Reading], warm_up: int) -> Figures:
    """What happened after the commit that made the process a warm one."""
    totals = list(accumulate(commit.rows for commit in commits))
    first = next(index for index, total in enumerate(totals) if total >= warm_up)
    rows, times = totals[-1] - totals[first], [commits[first].at, commits[-1].at]
    used = np.interp(times, [reading.at for reading in readings], [r.cpu_seconds for r in readings])
    return Figures(
        events_per_second=rows / (times[1] - times[0]),
        cpu_seconds_per_million=float(used[1] - used[0]) / rows * 1e6,
        commit_seconds=(times[1] - times[0]) / (len(commits) - 1 - first),
        peak_mib=readings[-1].peak_mib,
    )


def check(side: str, table: ds.Dataset, events: int) -> None:
    """Raise where not each event is a row, once, with its values."""
    rows = table.to_table(columns=["id", "at", f"x{FEATURES - 1}", "y"])
    ids = pc.count_distinct(rows["id"]).as_py()
    missing = sum(rows[name].null_count for name in rows.column_names)
    if (rows.num_rows, ids, missing) != (events, events, 0):
        raise SystemExit(
            f"{side} stored {events:,} events as {rows.num_rows:,} rows: {ids:,} ids, {missing:,} nulls"
        )


@asynccontextmanager
async def service_in(folder: Path, broker: ApacheKafka) -> AsyncIterator[Service]:
    """The service while the block runs: what it stores stays in the folder."""
    group = {"HEADRACE_INGESTION_CONSUMER_GROUP": f"benchmark-{folder.parent.name}"}
    async with AsyncExitStack() as stack:
        [service] = await services_on(broker, folder, stack, settings=group)
        await service.start()
        yield service


async def headrace(broker: ApacheKafka, folder: Path, options: argparse.Namespace) -> Figures:
    """Run the service until every event is a row."""
    events = options.warm_up + options.events
    async with service_in(folder, broker) as service:
        assert service.pid is not None
        async with watched(service.pid) as readings:
            while True:
                if (await described(service)).row_count >= events:
                    break
                await asyncio.sleep(_READ_SECONDS)
    table = folder / "store" / "datasets" / DATASET
    check("headrace", deltalake.DeltaTable(table).to_pyarrow_dataset(), events)
    return figures(commits_of_delta(table), readings, options.warm_up)


async def spark(broker: ApacheKafka, folder: Path, options: argparse.Namespace) -> Figures:
    """Let Spark store all events."""
    arguments = [broker.bootstrap, SAMPLES, str(folder), str(options.spark_batch), _COLUMNS]
    readings = await ended(Peer("spark", "SparkToDelta", folder, options.heap, arguments))
    table = folder / "table"
    check("spark", deltalake.DeltaTable(table).to_pyarrow_dataset(), options.warm_up + options.events)
    return figures(commits_of_delta(table), readings, options.warm_up)


async def flink(broker: ApacheKafka, folder: Path, options: argparse.Namespace) -> Figures:
    """Let Flink store all events."""
    arguments = [broker.bootstrap, SAMPLES, str(folder), str(options.flink_checkpoint), _COLUMNS]
    readings = await ended(Peer("flink", "FlinkToParquet", folder, options.heap, arguments))
    table = folder / "table"
    check("flink", ds.dataset(table, format="parquet"), options.warm_up + options.events)
    return figures(commits_of_files(table), readings, options.warm_up)


SIDES: Final = {"headrace": headrace, "spark": spark, "flink": flink}


async def ended(peer: Peer) -> list[Reading]:
    """Run an engine to its end."""
    try:
        await peer.start()
        assert peer.pid is not None
        async with watched(peer.pid) as readings:
            code = await peer.wait()
    finally:
        await peer.stop()
    if code != 0:
        raise peer.failed(f"ended with exit code {code}")
    return readings


async def measure(folder: Path, options: argparse.Namespace) -> dict[str, list[Figures]]:
    """All sides on one topic, by turns."""
    seen: dict[str, list[Figures]] = {side: [] for side in options.sides}
    async with AsyncExitStack() as stack:
        broker = await started_broker(folder, "kafka", stack)
        assert isinstance(broker, ApacheKafka)
        rounds = [folder / f"round-{number}" for number in range(options.rounds)]
        for place in rounds if "headrace" in seen else []:
            # While the topic is empty: an event of a dataset that nobody has declared yet is a rejected one.
            async with service_in(place / "headrace", broker) as service:
                await apply(service)
        await produce(broker.bootstrap, options.warm_up + options.events, malformed=0.0)
        for place in rounds:
            for side, found in seen.items():
                found.append(await SIDES[side](broker, place / side, options))
                print(f"{place.name} {side}: {found[-1].events_per_second:,.0f} events/s", flush=True)
                shutil.rmtree(place / side)
    return seen


def engine_versions() -> dict[str, str]:
    """Which engines these are, by their POMs."""
    pom = "{http://maven.apache.org/POM/4.0.0}"
    return {
        name: dependency.findtext(f"{pom}version", "")
        for engine in ("spark", "flink")
        for dependency in ElementTree.parse(_SOURCES / engine / "pom.xml").iter(f"{pom}dependency")
        if (name := dependency.findtext(f"{pom}artifactId", "")) in _NAMED
    }


def median(runs: Sequence[Figures]) -> Figures:
    """Figure by figure."""
    names = [field.name for field in fields(Figures)]
    return Figures(**{name: statistics.median(getattr(run, name) for run in runs) for name in names})


def kept(medians: Mapping[str, Figures]) -> bool:
    """Whether Headrace is ahead of the engines, with less than half of their memory."""
    ours = medians["headrace"]
    return all(
        ours.events_per_second > medians[engine].events_per_second
        and ours.peak_mib < medians[engine].peak_mib * BAR_MEMORY_SHARE
        for engine in ("spark", "flink")
    )


def main() -> int:
    """Measure, print, and answer 0 where the bars are kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=1_000_000, help="so many are measured")
    parser.add_argument("--warm-up", type=int, default=500_000, help="so many go before them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--heap", default="1g", help="largest heap of Spark and of Flink")
    parser.add_argument("--spark-batch", type=int, default=100_000, help="events a batch of Spark")
    parser.add_argument("--flink-checkpoint", type=int, default=1_000, help="milliseconds between Flink's")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-benchmark-", ignore_cleanup_errors=True) as folder:
        seen = asyncio.run(measure(Path(folder), options))
    where = machine("aiokafka", "deltalake", "pyarrow") | engine_versions()
    for name, value in where.items():
        print(f"{name:26}{value}")
    medians = {side: median(runs) for side, runs in seen.items()}
    print(f"\n{options.events:,} events after {options.warm_up:,}, medians of {options.rounds} rounds\n")
    print(f"{'':10}{'events/s':>10}{'CPU s/million':>16}{'s/commit':>10}{'peak MiB':>10}")
    for side, run in medians.items():
        print(
            f"{side:10}{run.events_per_second:>10,.0f}{run.cpu_seconds_per_million:>16.1f}"
            f"{run.commit_seconds:>10.2f}{run.peak_mib:>10,.0f}"
        )
    if options.json:
        runs = {side: [asdict(run) for run in found] for side, found in seen.items()}
        options.json.write_text(json.dumps({"machine": where, "runs": runs}, indent=1) + "\n")
    if set(options.sides) != set(SIDES):
        return 0
    print("\nthe bars are kept" if kept(medians) else "\na bar is missed")
    return 0 if kept(medians) else 1


if __name__ == "__main__":
    sys.exit(main())
