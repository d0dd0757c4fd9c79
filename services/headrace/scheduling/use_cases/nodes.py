"""Nodes: what they report, and what they should run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import groupby

from headrace.errors import Aborted
from headrace.runtime.clock import Clock
from headrace.scheduling.domain.node import Node, NodeReport, Occupant, observe
from headrace.scheduling.domain.policy import occupied_resources
from headrace.scheduling.domain.resources import Resources
from headrace.scheduling.use_cases import metrics
from headrace.scheduling.use_cases.documents import JobRecord
from headrace.scheduling.use_cases.ports import JobChange, NodeState, Store, Transaction

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NodeSummary:
    """A node, what is taken on it, and by which jobs."""

    node: Node
    allocated: Resources
    jobs: Sequence[str]


class Nodes:
    """What nodes do, and what is known of them."""

    def __init__(self, store: Store, clock: Clock, new_id: Callable[[], str], lease: timedelta) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id
        self.lease = lease

    async def attach(self, report: NodeReport) -> str:
        """Take in a stream's first report; return its session, which replaces the node's earlier one."""
        session = self._new_id()
        await self._take_in(session, report, first=True)
        logger.info("node %s is attached: %s", report.node, report.capacity)
        return session

    async def report(self, session: str, report: NodeReport) -> None:
        """Take in a later report. Raises Aborted NODE_REPLACED where another stream speaks for the node."""
        await self._take_in(session, report, first=False)

    async def desired(self, session: str, node: str) -> list[JobRecord]:
        """All that the node should run. Raises Aborted NODE_REPLACED."""
        if await self._store.session(node) not in (session, None):
            raise replaced(node)
        return await self._store.desired(node)

    async def list(self) -> list[NodeSummary]:
        """All nodes, by name."""
        nodes, holding = await self._store.nodes(), await self._store.holding_jobs()
        occupied = occupied_resources(nodes, holding)
        by_node = sorted((job.node, job.id) for job in holding)
        jobs = {name: [job for _, job in group] for name, group in groupby(by_node, key=lambda pair: pair[0])}
        return [NodeSummary(node, occupied[node.name], jobs.get(node.name, [])) for node in nodes]

    async def _take_in(self, session: str, report: NodeReport, *, first: bool) -> None:
        """Renew the lease and move the node's jobs to where the report says they are, in one transaction."""
        now = self._clock()
        changes: list[JobChange] = []
        async with self._store.transaction() as transaction:
            state = NodeState(
                name=report.node,
                version=report.version,
                capacity=report.capacity,
                session=session,
                lease_until=now + self.lease,
                last_report_time=now,
                reported=await _occupants(transaction, report),
            )
            if first:
                await transaction.attach_node(state)
            elif not await transaction.report_node(state):
                raise replaced(report.node)
            # After a restart a node reports several attempts of a job: each is known by both.
            tasks = {(task.job, task.attempt): task for task in report.tasks}
            for record in await transaction.jobs_on_node(report.node):
                task = tasks.get((record.job.id, record.job.attempt))
                after = replace(record, job=observe(record.job, task, now))
                if after.job != record.job:
                    changes.append(JobChange(record.job, after))
            await transaction.save_jobs(changes)
        for change in changes:
            metrics.observe_change(change.before, change.after.job)
            if change.after.job.version != change.before.version:
                job = change.after.job
                logger.info("job %s: %s: %s", job.id, job.state.value, job.message)


async def _occupants(transaction: Transaction, report: NodeReport) -> tuple[Occupant, ...]:
    """The attempts that take room on the node, wanted or not. What nobody knows is not counted."""
    active = [task for task in report.tasks if task.phase.active]
    if not active:
        return ()
    resources = await transaction.resources_of([task.job for task in active])
    return tuple(
        sorted(
            (
                Occupant(task.job, task.attempt, resources[task.job])
                for task in active
                if task.job in resources
            ),
            key=lambda occupant: (occupant.job, occupant.attempt),
        )
    )


def replaced(node: str) -> Aborted:
    """The error for a stream that a later one of the same node took over from."""
    return Aborted(
        "NODE_REPLACED",
        f'another stream speaks for node "{node}" now; where two agents run, give each its own name',
    )
