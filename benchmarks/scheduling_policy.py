"""Scheduling's decisions: 1,000 nodes, 10,000 queued jobs.

    python benchmarks/scheduling_policy.py [--rounds 5] [--json FILE] [--service]

Measured: placements per second of the pure policy (state in memory, actions out), and how long "why does it
wait" takes for the last job in the queue. With --service also the whole round of the service on an embedded
PostgreSQL: load, decide, apply with events in the outbox; and why, with its queries. Medians of the rounds.

Two fleets: `same`, where all nodes and jobs are of a few sizes, as most are; and `mixed`, where no two jobs
ask for the same, the policy's worst case.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from setting import machine

from headrace.api.ingestion.v1 import ingestion_pb2
from headrace.api.scheduling.v1 import scheduling_pb2 as pb
from headrace.embedded.parts import free_port
from headrace.embedded.parts.postgres import Postgres
from headrace.postgres.migrations import migrate
from headrace.postgres.pool import connect
from headrace.runtime.clock import utc_now
from headrace.scheduling.domain.job import Job, JobState
from headrace.scheduling.domain.node import Node, Occupant
from headrace.scheduling.domain.policy import JobView, Limits, Place, State, decide, occupied_resources
from headrace.scheduling.domain.resources import GIBIBYTE, MEBIBYTE, Resources
from headrace.scheduling.domain.why import MAX_AHEAD, Ahead, Why, room_of, why_pending
from headrace.scheduling.storage.changes import PostgresChanges
from headrace.scheduling.storage.store import PostgresStore
from headrace.scheduling.use_cases.documents import JobDocuments, JobRecord
from headrace.scheduling.use_cases.jobs import Jobs
from headrace.scheduling.use_cases.ports import NodeState
from headrace.scheduling.use_cases.reconcile import Reconciler, Watch

NODES, JOBS = 1_000, 10_000
BAR_PLACEMENTS, BAR_WHY_MS = 2_000, 10.0
NOW = datetime.now(UTC)
LIMITS = Limits(lease=timedelta(hours=1))


def node_size(rng: random.Random) -> Resources:
    """A node's capacity; a quarter of them have GPUs."""
    return Resources(rng.choice([0, 0, 0, 4]), rng.choice([16, 32, 64]) * 1000, 128 * GIBIBYTE)


def job_size(rng: random.Random, fleet: str) -> Resources:
    """What a job asks for."""
    if fleet == "mixed":
        return Resources(
            rng.choice([0] * 9 + [1]), rng.randint(500, 8000), rng.randint(256, 16_384) * MEBIBYTE
        )
    return rng.choice(
        [Resources(0, 1000, GIBIBYTE), Resources(0, 4000, 8 * GIBIBYTE), Resources(1, 2000, 4 * GIBIBYTE)]
    )


def make_state(fleet: str, seed: int) -> State:
    """An empty fleet and a full queue."""
    rng = random.Random(seed)
    nodes = [
        Node(f"node-{index:04}", node_size(rng), NOW + timedelta(hours=1), NOW) for index in range(NODES)
    ]
    jobs = [
        JobView(
            id=str(uuid.UUID(int=rng.getrandbits(128), version=4)),
            version=1,
            state=JobState.QUEUED,
            priority=rng.choice([0, 0, 0, 5, 10]),
            resources=job_size(rng, fleet),
            attempt=1,
            node="",
            create_time=NOW - timedelta(seconds=rng.random() * 3600),
        )
        for _ in range(JOBS)
    ]
    return State(jobs, nodes, NOW - timedelta(hours=2))


def seconds(work: Callable[[], object]) -> float:
    """How long the work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure_policy(fleet: str, rounds: int) -> dict[str, float]:
    """The pure functions, in memory."""
    rates, whys, placed = [], [], 0
    for seed in range(rounds):
        state = make_state(fleet, seed)
        started = time.perf_counter()
        actions = decide(state, NOW, LIMITS)
        elapsed = time.perf_counter() - started
        placed = sum(isinstance(action, Place) for action in actions)
        rates.append(placed / elapsed)
        # Full nodes, and the last one in the queue asks.
        full = [
            Node(
                node.name,
                node.capacity,
                node.lease_until,
                node.last_report_time,
                reported=(Occupant(str(uuid.uuid4()), 1, node.capacity),),
            )
            for node in state.nodes
        ]
        last = max(state.jobs, key=lambda job: job.queue_key)

        ahead = Ahead(tuple(job.id for job in state.jobs[:MAX_AHEAD]), JOBS - 1, JOBS - 1)

        def ask(job: JobView = last, nodes: list[Node] = full, before: Ahead = ahead) -> Why:
            return why_pending(job, room_of(nodes, occupied_resources(nodes, [])), before, NOW)

        whys.append(statistics.median(seconds(ask) for _ in range(5)) * 1000)
    return {
        "placements_per_second": statistics.median(rates),
        "placed": placed,
        "why_ms": statistics.median(whys),
    }


async def measure_service(fleet: str, folder: Path) -> dict[str, float]:
    """The service's own rounds, on PostgreSQL."""
    server = Postgres(folder / "postgres", folder / "logs", free_port(), durable=True)
    await server.start()
    try:
        async with connect(server.dsn, schema="scheduling", application_name="benchmark") as pool:
            await migrate(pool, "headrace.scheduling.storage")
            store, changes = PostgresStore(pool, utc_now), PostgresChanges(pool)
            state = make_state(fleet, 0)
            await fill(store, state)
            # As autovacuum does within a minute.
            await pool.execute("ANALYZE")
            reconciler = Reconciler(store, changes, utc_now, LIMITS)
            jobs = Jobs(store, None, changes, utc_now, lambda: str(uuid.uuid4()))  # type: ignore[arg-type]
            last = max(state.jobs, key=lambda job: job.queue_key)
            whys = []
            for _ in range(20):
                started = time.perf_counter()
                await jobs.why(last.id)
                whys.append((time.perf_counter() - started) * 1000)
            epoch, watch = await store.begin_epoch(), Watch(timedelta(hours=1), NOW, NOW)
            started, placed = time.perf_counter(), 0
            while changed := await reconciler.round(epoch, watch):
                placed += changed
            elapsed = time.perf_counter() - started
    finally:
        await server.stop()
    return {
        "placements_per_second": placed / elapsed,
        "placed": placed,
        "why_ms": statistics.median(whys),
    }


async def fill(store: PostgresStore, state: State) -> None:
    """Store the state as the service would."""
    documents = JobDocuments(
        pb.TrainingSpec(recipe="mlp"),
        ingestion_pb2.Schema(
            key="id",
            features=[ingestion_pb2.Field(name=f"feature_{index}") for index in range(30)],
            label=ingestion_pb2.Field(name="label"),
        ),
        ingestion_pb2.DatasetVersion(dataset="benchmark", version=1),
    )
    async with store.transaction() as transaction:
        for node in state.nodes:
            await transaction.attach_node(
                NodeState(node.name, "1", node.capacity, str(uuid.uuid4()), node.lease_until, NOW, ())
            )
        for view in state.jobs:
            job = Job(
                id=view.id,
                pipeline="benchmark",
                dataset_version=1,
                resources=view.resources,
                create_time=view.create_time,
                queue_time=view.create_time,
                priority=view.priority,
            )
            await transaction.add_job(JobRecord(job, documents), automatic=False, request_id="")


def main() -> int:
    """Measure, print, and answer 0 where both bars are kept."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--service", action="store_true", help="also measure on an embedded PostgreSQL")
    arguments = parser.parse_args()

    results = {f"policy, {fleet}": measure_policy(fleet, arguments.rounds) for fleet in ("same", "mixed")}
    if arguments.service:
        for fleet in ("same", "mixed"):
            with tempfile.TemporaryDirectory() as folder:
                results[f"service, {fleet}"] = asyncio.run(measure_service(fleet, Path(folder)))
    report = {
        "machine": machine("asyncpg"),
        "nodes": NODES,
        "jobs": JOBS,
        "bars": {"placements_per_second": BAR_PLACEMENTS, "why_ms": BAR_WHY_MS},
        "results": results,
    }
    for name, value in report["machine"].items():  # type: ignore[attr-defined]
        print(f"{name:10} {value}")
    print(f"\n{NODES:,} nodes, {JOBS:,} queued jobs\n")
    print(f"{'':20} {'placed':>8} {'placements/s':>14} {'why, ms':>10}")
    for name, figures in results.items():
        print(
            f"{name:20} {figures['placed']:>8,.0f} {figures['placements_per_second']:>14,.0f} "
            f"{figures['why_ms']:>10.2f}"
        )
    print(f"{'bar':20} {'':8} {f'>= {BAR_PLACEMENTS:,}':>14} {f'< {BAR_WHY_MS:g}':>10}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    kept = all(
        figures["placements_per_second"] >= BAR_PLACEMENTS and figures["why_ms"] < BAR_WHY_MS
        for name, figures in results.items()
        if name.startswith("policy")
    )
    print("\nthe bars are kept" if kept else "\na bar is missed")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
