"""Why a job waits: who is ahead, what each node lacks, and whether it can ever run."""

from __future__ import annotations

import enum
import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from headrace.scheduling.domain.job import JobState
from headrace.scheduling.domain.node import Node
from headrace.scheduling.domain.policy import JobView
from headrace.scheduling.domain.resources import NOTHING, Resources, shortage

MAX_AHEAD = 100


class Reason(enum.Enum):
    """Stable codes."""

    NOT_PENDING = "NOT_PENDING"
    NO_NODES = "NO_NODES"
    NEVER_FITS = "NEVER_FITS"
    BEHIND_OTHERS = "BEHIND_OTHERS"
    WAITING_FOR_CAPACITY = "WAITING_FOR_CAPACITY"


class Verdict(enum.Enum):
    """What a node is to a job."""

    FITS = "FITS"
    TOO_SMALL = "TOO_SMALL"
    BUSY = "BUSY"
    NOT_READY = "NOT_READY"


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """A node and what is taken on it."""

    node: Node
    occupied: Resources


@dataclass(frozen=True, slots=True)
class NodeVerdict:
    """What one node is to the job, and what is short."""

    node: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True, slots=True)
class Ahead:
    """The queued jobs that go first: the first ones' ids, in order, and how many there are of each size."""

    first: tuple[str, ...] = ()
    sizes: Mapping[Resources, int] | None = None

    @property
    def count(self) -> int:
        """How many go first."""
        return sum((self.sizes or {}).values())


@dataclass(frozen=True, slots=True)
class Why:
    """The answer, for programs (`reason`, verdicts) and for people (`message`)."""

    state: JobState
    reason: Reason
    message: str
    nodes: tuple[NodeVerdict, ...] = ()
    ahead: Ahead = Ahead()


def ahead_of(job: JobView, jobs: Iterable[JobView]) -> Ahead:
    """The queued jobs among `jobs` that go before `job`."""
    key = job.queue_key
    before = [other for other in jobs if other.state is JobState.QUEUED and other.queue_key < key]
    first = heapq.nsmallest(MAX_AHEAD, before, key=lambda other: other.queue_key)
    return Ahead(tuple(other.id for other in first), Counter(other.resources for other in before))


def why_pending(job: JobView, rooms: Sequence[NodeRoom], ahead: Ahead, now: datetime) -> Why:
    """Explain why `job` does not run yet."""
    if job.state is not JobState.QUEUED:
        return Why(job.state, Reason.NOT_PENDING, _NOT_PENDING[job.state])
    verdicts = tuple(_verdict(job.resources, room, now) for room in rooms)
    reason, message = _explain(job, rooms, verdicts, ahead)
    return Why(job.state, reason, message, verdicts, ahead)


_NOT_PENDING = {
    JobState.PLACED: "it does not wait: it is assigned to a node, which is starting it",
    JobState.RUNNING: "it does not wait: it is running",
    JobState.CANCELLING: "it does not wait: it was cancelled, and its node is stopping it",
    JobState.SUCCEEDED: "it does not wait: it has succeeded",
    JobState.FAILED: "it does not wait: it has failed",
    JobState.CANCELLED: "it does not wait: it was cancelled",
}


def _verdict(need: Resources, room: NodeRoom, now: datetime) -> NodeVerdict:
    node = room.node
    if not need.fits(node.capacity):
        return NodeVerdict(node.name, Verdict.TOO_SMALL, _too_small(need, node.capacity))
    if not node.ready(now):
        silent = (now - node.last_report_time).total_seconds()
        return NodeVerdict(node.name, Verdict.NOT_READY, f"has not reported for {silent:.0f} s")
    free = node.capacity - room.occupied
    if not need.fits(free):
        return NodeVerdict(node.name, Verdict.BUSY, shortage(need, free, node.capacity))
    return NodeVerdict(node.name, Verdict.FITS, f"{free} free")


def _too_small(need: Resources, capacity: Resources) -> str:
    return shortage(need, capacity, capacity).replace(" free of ", " in all of ")


def _explain(
    job: JobView, rooms: Sequence[NodeRoom], verdicts: Sequence[NodeVerdict], ahead: Ahead
) -> tuple[Reason, str]:
    if not rooms:
        return Reason.NO_NODES, "no node is attached; start a training agent"
    kinds = {verdict.verdict for verdict in verdicts}
    if kinds == {Verdict.TOO_SMALL}:
        largest = max((room.node for room in rooms), key=lambda node: (node.capacity, node.name))
        return Reason.NEVER_FITS, (
            f"no node is large enough: it needs {job.resources}, "
            f"and the largest node, {largest.name}, has {largest.capacity}. "
            "Ask for less in the pipeline's resources, or attach a larger node"
        )
    if not kinds & {Verdict.FITS, Verdict.BUSY}:
        silent = [verdict.node for verdict in verdicts if verdict.verdict is Verdict.NOT_READY]
        return Reason.NO_NODES, (
            f"no node that is large enough is ready: {', '.join(silent[:5])}"
            f"{' and others' if len(silent) > 5 else ''} stopped reporting"
        )
    if competing := _competing(ahead, rooms):
        return Reason.BEHIND_OTHERS, (
            f"{competing} {'job goes' if competing == 1 else 'jobs go'} first: "
            "higher priority, or the same and older"
        )
    if Verdict.FITS in kinds:
        return Reason.WAITING_FOR_CAPACITY, "a node has room; it will be placed at the next decision"
    busy = sum(verdict.verdict is Verdict.BUSY for verdict in verdicts)
    return Reason.WAITING_FOR_CAPACITY, (
        f"it is the next one; {busy} {'node is' if busy == 1 else 'nodes are'} large enough and busy"
    )


def _competing(ahead: Ahead, rooms: Sequence[NodeRoom]) -> int:
    """How many of the jobs ahead could run at all: one that fits nowhere keeps nobody waiting."""
    return sum(
        count
        for size, count in (ahead.sizes or {}).items()
        if any(size.fits(room.node.capacity) for room in rooms)
    )


def room_of(nodes: Iterable[Node], occupied: Mapping[str, Resources]) -> list[NodeRoom]:
    """Pair each node with what is taken on it."""
    return [NodeRoom(node, occupied.get(node.name, NOTHING)) for node in nodes]
