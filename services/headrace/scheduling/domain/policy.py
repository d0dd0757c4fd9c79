"""What should happen now: a pure function of the state and the time.

The order of the queue is priority, then first in, first out. Each job in that order gets the node that it
fills best; one that fits nowhere now is passed by smaller ones behind it, and never by one that takes a
place it could have had.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from headrace.scheduling.domain.job import DESIRED, JobState
from headrace.scheduling.domain.node import Node
from headrace.scheduling.domain.resources import NOTHING, Resources


@dataclass(frozen=True, slots=True)
class JobView:
    """What decisions need to know of a job that has not ended."""

    id: str
    version: int
    state: JobState
    priority: int
    resources: Resources
    attempt: int
    node: str
    create_time: datetime
    attempt_start_time: datetime | None = None
    deadline: timedelta | None = None

    @property
    def queue_key(self) -> tuple[int, datetime, str]:
        """Sorts the queue. A job that is queued again keeps its place among its equals."""
        return (-self.priority, self.create_time, self.id)


@dataclass(frozen=True, slots=True)
class State:
    """All jobs that have not ended, and all nodes.

    `watching_since` is when the deciding instance began to see reports without a gap. A node that was
    silent before is not lost for that: nobody listened.
    """

    jobs: Sequence[JobView]
    nodes: Sequence[Node]
    watching_since: datetime


@dataclass(frozen=True, slots=True)
class Limits:
    """Times that decisions keep to."""

    # How long a node's lease lasts from each report.
    lease: timedelta
    # A node enforces deadlines itself, from the run's start; this much later it is done for it. The margin
    # is for the node's word to arrive, so that it also begins anew when nobody has listened.
    deadline_margin: timedelta = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Place:
    """Assign a queued job to a node."""

    job: str
    version: int
    node: str


@dataclass(frozen=True, slots=True)
class LoseNode:
    """Take a job from a node whose lease has ended."""

    job: str
    version: int
    node: str
    silent: timedelta


@dataclass(frozen=True, slots=True)
class ExceedDeadline:
    """End an attempt that ran longer than it may, or was not even started for so long."""

    job: str
    version: int
    deadline: timedelta


Action = Place | LoseNode | ExceedDeadline


def decide(state: State, now: datetime, limits: Limits, *, max_placements: int | None = None) -> list[Action]:
    """What to do now, in order: deadlines, lost nodes, placements."""
    nodes = {node.name: node for node in state.nodes}
    lost = [
        LoseNode(job.id, job.version, job.node, _silence(nodes.get(job.node), state.watching_since, now))
        for job in state.jobs
        if job.state.holds_node and _is_lost(nodes.get(job.node), state.watching_since, now, limits)
    ]
    gone = {action.job for action in lost}
    overdue = [
        ExceedDeadline(job.id, job.version, job.deadline)
        for job in state.jobs
        if job.id not in gone
        and job.deadline is not None
        and _is_overdue(job, job.deadline, state.watching_since, now, limits)
    ]
    queue = sorted((job for job in state.jobs if job.state is JobState.QUEUED), key=lambda job: job.queue_key)
    free = free_resources(state.nodes, state.jobs, now)
    return [*overdue, *lost, *_placements(queue, free, max_placements)]


def _is_lost(node: Node | None, watching_since: datetime, now: datetime, limits: Limits) -> bool:
    if now < watching_since + limits.lease:
        return False
    return node is None or not node.ready(now)


def _silence(node: Node | None, watching_since: datetime, now: datetime) -> timedelta:
    return now - (node.last_report_time if node else watching_since)


def _is_overdue(
    job: JobView, deadline: timedelta, watching_since: datetime, now: datetime, limits: Limits
) -> bool:
    # Lengths are compared, and not times: a deadline may lead out of the calendar.
    return (
        job.state in DESIRED
        and job.attempt_start_time is not None
        and now - job.attempt_start_time >= deadline + limits.deadline_margin
        and now - watching_since >= limits.deadline_margin
    )


def occupied_resources(nodes: Iterable[Node], jobs: Iterable[JobView]) -> dict[str, Resources]:
    """What is taken on each node: by the jobs assigned to it, and by what else it reports as active."""
    occupied: dict[str, Resources] = {node.name: NOTHING for node in nodes}
    assigned: dict[str, set[tuple[str, int]]] = {}
    for job in jobs:
        if job.state.holds_node:
            occupied[job.node] = occupied.get(job.node, NOTHING) + job.resources
            assigned.setdefault(job.node, set()).add((job.id, job.attempt))
    for node in nodes:
        own = assigned.get(node.name, set())
        for occupant in node.reported:
            if (occupant.job, occupant.attempt) not in own:
                occupied[node.name] += occupant.resources
    return occupied


def free_resources(nodes: Sequence[Node], jobs: Iterable[JobView], now: datetime) -> dict[str, Resources]:
    """What each ready node has left."""
    occupied = occupied_resources(nodes, jobs)
    return {node.name: node.capacity - occupied[node.name] for node in nodes if node.ready(now)}


def _placements(
    queue: Sequence[JobView], free: Mapping[str, Resources], max_placements: int | None
) -> list[Place]:
    rooms = _Rooms(free)
    placed: list[Place] = []
    for job in queue:
        if max_placements is not None and len(placed) >= max_placements:
            break
        node = rooms.take(job.resources)
        if node is not None:
            placed.append(Place(job.id, job.version, node))
    return placed


class _Rooms:
    """Free room on nodes, sorted from the tightest: the first one that fits is filled best.

    Room only shrinks while one decision is made, so that a size which did not fit once need not be tried
    again; queues hold few different sizes.
    """

    def __init__(self, free: Mapping[str, Resources]) -> None:
        self._sorted = sorted((room, name) for name, room in free.items())
        self._too_large: set[Resources] = set()

    def take(self, need: Resources) -> str | None:
        """Take room on the tightest node that has enough; return its name."""
        if need in self._too_large:
            return None
        for index in range(bisect_left(self._sorted, (need, "")), len(self._sorted)):
            room, name = self._sorted[index]
            if need.fits(room):
                del self._sorted[index]
                insort(self._sorted, (room - need, name))
                return name
        self._too_large.add(need)
        return None
