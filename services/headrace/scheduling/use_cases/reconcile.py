"""The leader's loop: load the state, decide outside any transaction, apply what still holds.

Level-triggered: each round looks at everything as it is, so that a lost wake-up, a crash or a conflict costs
one round and never correctness.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from headrace.runtime.clock import Clock
from headrace.runtime.faults import fault_point
from headrace.scheduling.domain import job as jobs
from headrace.scheduling.domain.job import Job, JobState
from headrace.scheduling.domain.policy import (
    Action,
    ExceedDeadline,
    Limits,
    LoseNode,
    Place,
    State,
    decide,
)
from headrace.scheduling.use_cases import metrics
from headrace.scheduling.use_cases.documents import JobRecord
from headrace.scheduling.use_cases.ports import ChangeFeed, JobChange, Store
from headrace.telemetry import names, tracing

logger = logging.getLogger(__name__)

# Without a change, the state is looked at this often; oftener where leases are short.
ROUND_SECONDS: Final = 1.0
ROUNDS_PER_LEASE: Final = 5
# A transaction holds its locks for this many jobs at most.
BATCH: Final = 100
MAX_PLACEMENTS: Final = 1000
# A node that has been silent for so long is no longer listed.
FORGET_AFTER: Final = timedelta(hours=1)


class LeadershipLostError(Exception):
    """Another instance has begun to lead."""


@dataclass(slots=True)
class Watch:
    """Since when this instance has seen reports without a gap.

    While it was not leading, could not reach the database or was itself stopped, nodes may have reported in
    vain; after such a gap each one gets a whole lease before it counts as lost.
    """

    patience: timedelta
    since: datetime
    last: datetime

    def seen(self, now: datetime) -> None:
        """A round has read the state."""
        if now - self.last > self.patience:
            self.since = now
        self.last = now


class Reconciler:
    """Decides while this instance leads."""

    def __init__(self, store: Store, changes: ChangeFeed, clock: Clock, limits: Limits) -> None:
        self._store = store
        self._changes = changes
        self._clock = clock
        self._limits = limits
        self._failing = False

    async def lead(self) -> None:
        """Decide whenever something changes, and at latest each second, until cancelled or replaced."""
        epoch = await self._store.begin_epoch()
        now = self._clock()
        watch = Watch(self._limits.lease / 2, now, now)
        pause = min(ROUND_SECONDS, self._limits.lease.total_seconds() / ROUNDS_PER_LEASE)
        logger.info("deciding, epoch %d", epoch)
        metrics.LEADER.set(1)
        try:
            with self._changes.any_change() as wake:
                while True:
                    started = time.perf_counter()
                    if not await self._attempt(epoch, watch):
                        # Many changes may share a round: at least half of the time is left to others.
                        await asyncio.sleep(time.perf_counter() - started)
                        await wake.wait(pause)
        except LeadershipLostError:
            logger.warning("another instance decides now")
        finally:
            metrics.LEADER.set(0)
            # The next leader tells these; what this one last saw would stand beside it for ever.
            for gauge in (metrics.PENDING, metrics.ACTIVE):
                gauge.set(0)
            metrics.NODES.clear()

    async def _attempt(self, epoch: int, watch: Watch) -> int:
        """Do a round; where something keeps it from succeeding, the next one is the repair."""
        try:
            changed = await self.round(epoch, watch)
        except LeadershipLostError:
            raise
        except Exception as error:
            # Where it happened once: an outage fails in the same way again and again.
            logger.warning("a round failed, trying again: %r", error, exc_info=not self._failing)
            self._failing = True
            return 0
        self._failing = False
        return changed

    async def round(self, epoch: int, watch: Watch) -> int:
        """Look at everything once; return how many jobs were changed."""
        started = time.perf_counter()
        living, nodes = await self._store.living_jobs(), await self._store.nodes()
        now = self._clock()
        watch.seen(now)
        actions = decide(State(living, nodes, watch.since), now, self._limits, max_placements=MAX_PLACEMENTS)
        changed = 0
        for begin in range(0, len(actions), BATCH):
            changed += await self._apply(actions[begin : begin + BATCH], epoch)
        if any(now - node.last_report_time > FORGET_AFTER for node in nodes):
            await self._store.forget_nodes(now - FORGET_AFTER)
        metrics.PENDING.set(sum(job.state is JobState.QUEUED for job in living))
        metrics.ACTIVE.set(sum(job.state.holds_node for job in living))
        ready = sum(node.ready(now) for node in nodes)
        metrics.NODES.labels("true").set(ready)
        metrics.NODES.labels("false").set(len(nodes) - ready)
        metrics.ATTEMPT_SECONDS.observe(time.perf_counter() - started)
        return changed

    async def _apply(self, actions: Sequence[Action], epoch: int) -> int:
        """Change the jobs that still are as they were when it was decided; return how many."""
        by_job = {action.job: action for action in actions}
        async with self._store.transaction() as transaction:
            if not await transaction.still_leads(epoch):
                raise LeadershipLostError
            now = self._clock()
            changes = [
                JobChange(record.job, carry_out(by_job[record.job.id], record, now))
                for record in await transaction.jobs(list(by_job))
                if record.job.version == by_job[record.job.id].version
            ]
            await transaction.save_jobs(changes)
        if any(change.after.job.state is JobState.PLACED for change in changes):
            fault_point("scheduling.after-placement-commit")
        for change in changes:
            before, after = change.before, change.after.job
            metrics.observe_change(before, after)
            if after.state is JobState.PLACED:
                metrics.WAIT_SECONDS.observe((now - before.queue_time).total_seconds())
            logger.info("job %s: %s: %s", after.id, after.state.value, after.message)
        return len(changes)


def carry_out(action: Action, record: JobRecord, now: datetime) -> JobRecord:
    """The job after what was decided for it."""
    job = record.job
    match action:
        case Place():
            return replace(record, job=_place(job, action.node, now))
        case LoseNode():
            silent = action.silent.total_seconds()
            message = (
                f"node {action.node} has not reported for {silent:.0f} s; "
                "the job continues elsewhere from its last checkpoint"
            )
            return replace(record, job=jobs.lose(job, now, reason="NODE_LOST", message=message))
        case ExceedDeadline():
            deadline = f"its deadline of {action.deadline.total_seconds():g} s"
            message = (
                f"node {job.node} did not start the attempt within {deadline}"
                if job.state is JobState.PLACED
                else f"the attempt ran longer than {deadline}"
            )
            failed = jobs.fail_attempt(job, now, reason="DEADLINE_EXCEEDED", message=message)
            return replace(record, job=failed)


def _place(job: Job, node: str, now: datetime) -> Job:
    attributes: dict[str, str | int] = {
        names.JOB: job.id,
        names.PIPELINE: job.pipeline,
        names.ATTEMPT: job.attempt,
        names.NODE: node,
    }
    tracer, context = tracing.tracer(__name__), tracing.context_from(job.traceparent)
    waited = tracer.start_span(
        names.SPAN_WAIT_IN_QUEUE,
        context=context,
        attributes=attributes,
        start_time=_nanoseconds(job.queue_time),
    )
    waited.end(_nanoseconds(now))
    with tracing.span(names.SPAN_PLACE_JOB, parent=job.traceparent, attributes=attributes):
        return jobs.place(job, node, now, traceparent=tracing.current_traceparent())


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000) * 1000
