"""Why a job waits: who is ahead, what each node lacks, and whether it can ever run."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from headrace.scheduling.domain.job import JobState
from headrace.scheduling.domain.node import Node
from headrace.scheduling.domain.policy import JobView
from headrace.scheduling.domain.resources import NOTHING, Resources, shortage

# An answer names this many of the jobs that go first, and counts the others.
MAX_AHEAD = 100


class Reason(enum.Enum):
    """Stable codes."""

    NOT_PENDING = "NOT_PENDING"
    DATASET_VERSION_BLOCKED = "DATASET_VERSION_BLOCKED"
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
    """The queued jobs that go first: the first ones' ids, in order; how many there are; and how many of them
    some node is large enough for. One that fits nowhere keeps nobody waiting.
    """

    first: tuple[str, ...] = ()
    count: int = 0
    able: int = 0


@dataclass(frozen=True, slots=True)
class Why:
    """The answer, for programs (`reason`, verdicts) and for people (`message`)."""

    state: JobState
    reason: Reason
    message: str
    nodes: tuple[NodeVerdict, ...] = ()
    ahead: Ahead = Ahead()


def why_pending(job: JobView, rooms: Sequence[NodeRoom], ahead: Ahead, now: datetime) -> Why:
    """Explain why `job` does not run yet."""
    if job.state is not JobState.QUEUED:
        return Why(job.state, Reason.NOT_PENDING, _NOT_PENDING[job.state])
    judge = _Judge(job.resources)
    verdicts = tuple(judge.verdict(room, now) for room in rooms)
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


class _Judge:
    """Compares one need with many nodes; most nodes are like others, and are described once."""

    def __init__(self, need: Resources) -> None:
        self._need = need
        self._known: dict[tuple[Resources, Resources], tuple[Verdict, str]] = {}

    def verdict(self, room: NodeRoom, now: datetime) -> NodeVerdict:
        """What a node is to the job."""
        node, size = room.node, (room.node.capacity, room.occupied)
        verdict, detail = self._known.get(size) or self._known.setdefault(size, self._compare(*size))
        if verdict is not Verdict.TOO_SMALL and not node.ready(now):
            silent = (now - node.last_report_time).total_seconds()
            return NodeVerdict(node.name, Verdict.NOT_READY, f"has not reported for {silent:.0f} s")
        return NodeVerdict(node.name, verdict, detail)

    def _compare(self, capacity: Resources, occupied: Resources) -> tuple[Verdict, str]:
        if not self._need.fits(capacity):
            return Verdict.TOO_SMALL, _too_small(self._need, capacity)
        free = capacity - occupied
        if not self._need.fits(free):
            return Verdict.BUSY, shortage(self._need, free, capacity)
        return Verdict.FITS, f"{free} free"


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
    if ahead.able:
        return Reason.BEHIND_OTHERS, (
            f"{ahead.able} {'job goes' if ahead.able == 1 else 'jobs go'} first: "
            "higher priority, or the same and older"
        )
    if Verdict.FITS in kinds:
        return Reason.WAITING_FOR_CAPACITY, "a node has room; it will be placed at the next decision"
    busy = sum(verdict.verdict is Verdict.BUSY for verdict in verdicts)
    return Reason.WAITING_FOR_CAPACITY, (
        f"it is the next one; {busy} {'node is' if busy == 1 else 'nodes are'} large enough and busy"
    )


def room_of(nodes: Iterable[Node], occupied: Mapping[str, Resources]) -> list[NodeRoom]:
    """Pair each node with what is taken on it."""
    return [NodeRoom(node, occupied.get(node.name, NOTHING)) for node in nodes]
