from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from headrace.scheduling.domain.job import JobState
from headrace.scheduling.domain.node import Node
from headrace.scheduling.domain.policy import JobView
from headrace.scheduling.domain.resources import GIBIBYTE, NOTHING, Resources
from headrace.scheduling.domain.why import Ahead, NodeRoom, Reason, Verdict, why_pending

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
NEED = Resources(0, 4000, GIBIBYTE)


def job(name: str = "job", need: Resources = NEED, *, priority: int = 0, age: float = 0) -> JobView:
    return JobView(name, 1, JobState.QUEUED, priority, need, 1, "", NOW - timedelta(seconds=age))


def room(name: str, cores: int, *, taken: int = 0, silent: float = 0) -> NodeRoom:
    last = NOW - timedelta(seconds=silent)
    node = Node(name, Resources(0, cores * 1000, 8 * GIBIBYTE), last + timedelta(seconds=10), last)
    return NodeRoom(node, Resources(0, taken * 1000, 0) if taken else NOTHING)


def test_a_job_that_runs_does_not_wait() -> None:
    why = why_pending(replace(job(), state=JobState.RUNNING), [], Ahead(), NOW)
    assert why.reason is Reason.NOT_PENDING


def test_without_nodes_it_says_what_to_start() -> None:
    why = why_pending(job(), [], Ahead(), NOW)
    assert (why.reason, why.message) == (Reason.NO_NODES, "no node is attached; start a training agent")


def test_a_job_that_can_never_fit_is_told_the_largest_node() -> None:
    why = why_pending(job(), [room("small", 1), room("large", 2)], Ahead(), NOW)
    assert why.reason is Reason.NEVER_FITS
    assert "needs 4 cores, 1 GiB" in why.message
    assert "the largest node, large, has 2 cores, 8 GiB" in why.message
    assert [verdict.verdict for verdict in why.nodes] == [Verdict.TOO_SMALL] * 2
    assert why.nodes[0].detail == "needs 4 cores, 1 in all of 1"


def test_a_large_node_that_is_silent_may_come_back() -> None:
    why = why_pending(job(), [room("small", 1), room("large", 8, silent=42)], Ahead(), NOW)
    assert why.reason is Reason.NO_NODES
    assert "large stopped reporting" in why.message
    assert why.nodes[1].detail == "has not reported for 42 s"


def test_a_busy_node_says_what_is_short() -> None:
    why = why_pending(job(), [room("node-a", 4, taken=3)], Ahead(), NOW)
    assert why.reason is Reason.WAITING_FOR_CAPACITY
    assert why.nodes[0].verdict is Verdict.BUSY
    assert why.nodes[0].detail == "needs 4 cores, 1 free of 4"


def test_the_jobs_ahead_are_counted() -> None:
    ahead = Ahead(("urgent", "older"), count=2, able=2)
    why = why_pending(job(), [room("node-a", 4, taken=4)], ahead, NOW)
    assert (why.reason, why.ahead) == (Reason.BEHIND_OTHERS, ahead)
    assert why.message.startswith("2 jobs go first")


def test_a_job_ahead_that_fits_nowhere_keeps_nobody_waiting() -> None:
    why = why_pending(job(), [room("node-a", 4, taken=4)], Ahead(("huge",), count=1, able=0), NOW)
    assert why.reason is Reason.WAITING_FOR_CAPACITY


def test_nodes_of_one_size_get_one_description_and_keep_their_own_readiness() -> None:
    why = why_pending(job(), [room("a", 4), room("b", 4, silent=60), room("c", 4)], Ahead(), NOW)
    assert [verdict.verdict for verdict in why.nodes] == [Verdict.FITS, Verdict.NOT_READY, Verdict.FITS]


def test_a_job_that_fits_is_about_to_be_placed() -> None:
    why = why_pending(job(), [room("node-a", 4)], Ahead(), NOW)
    assert (why.reason, why.nodes[0].verdict) == (Reason.WAITING_FOR_CAPACITY, Verdict.FITS)
