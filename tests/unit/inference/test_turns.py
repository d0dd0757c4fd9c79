"""Turns are given by priority, within an adaptive limit, and nobody is forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.inference.domain.requests import Priority
from headrace.inference.domain.turns import WEIGHTS, AdaptiveLimit, Turns

DEPLOYMENTS = ("a", "b", "c")
MOST = 5


class Line(RuleBasedStateMachine):
    """Tickets come, go, are called and end in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = Turns[int](most=MOST, first=2)
        self.waiting: dict[int, tuple[str, Priority]] = {}
        self.called: dict[int, str] = {}
        self.count = 0

    @rule(deployment=st.sampled_from(DEPLOYMENTS), priority=st.sampled_from(Priority))
    def wait(self, deployment: str, priority: Priority) -> None:
        self.count += 1
        self.waiting[self.count] = deployment, priority
        self.turns.wait(deployment, priority, self.count)

    @rule()
    def give(self) -> None:
        while (ticket := self.turns.next()) is not None:
            self.called[ticket] = self.waiting.pop(ticket)[0]
        for deployment in DEPLOYMENTS:
            under_way = list(self.called.values()).count(deployment)
            waits = any(whose == deployment for whose, _ in self.waiting.values())
            assert not waits or under_way >= self.turns.limit(deployment)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.waiting)))
        self.turns.leave(*self.waiting.pop(ticket), ticket)

    @precondition(lambda self: self.called)
    @rule(data=st.data(), refused=st.booleans())
    def end(self, data: st.DataObject, refused: bool) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.called)))
        self.turns.end(self.called.pop(ticket), refused=refused)

    @invariant()
    def limits_are_kept(self) -> None:
        for deployment in DEPLOYMENTS:
            assert 1 <= self.turns.limit(deployment) <= MOST
            assert list(self.called.values()).count(deployment) <= MOST


TestLine = Line.TestCase


def called(turns: Turns[tuple[Priority, int]], count: int) -> list[tuple[Priority, int]]:
    """Whose turns they are, one after the other."""
    order = []
    for _ in range(count):
        ticket = turns.next()
        assert ticket is not None
        order.append(ticket)
        turns.end("live", refused=False)
    return order


def test_turns_are_shared_by_weight_and_nobody_starves() -> None:
    turns = Turns[tuple[Priority, int]](most=1, first=1)
    for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH):
        for number in range(100):
            turns.wait("live", priority, (priority, number))
    order = called(turns, 42)
    for priority, weight in WEIGHTS.items():
        mine = [number for whose, number in order if whose is priority]
        assert mine == list(range(len(mine)))
        assert abs(len(mine) - 2 * weight) <= 2


def test_who_comes_late_has_saved_nothing_up() -> None:
    turns = Turns[tuple[Priority, int]](most=1, first=1)
    for number in range(200):
        turns.wait("live", Priority.HIGH, (Priority.HIGH, number))
    called(turns, 100)
    for number in range(50):
        turns.wait("live", Priority.LOW, (Priority.LOW, number))
    order = called(turns, 34)
    assert sum(whose is Priority.LOW for whose, _ in order) <= 3


def test_a_deployment_that_takes_nothing_holds_up_no_other() -> None:
    turns = Turns[str](most=4, first=1)
    turns.wait("stuck", Priority.NORMAL, "s1")
    assert turns.next() == "s1"
    turns.wait("stuck", Priority.NORMAL, "s2")
    turns.wait("live", Priority.LOW, "l1")
    assert turns.next() == "l1"
    assert turns.next() is None


def run(limit: AdaptiveLimit, calls: int, *, refused: bool) -> None:
    for _ in range(calls):
        limit.begin()
    for _ in range(calls):
        limit.end(refused=refused)


def test_a_limit_that_is_used_up_grows_to_its_most() -> None:
    limit = AdaptiveLimit(most=16, limit=4)
    for _ in range(100):
        run(limit, int(limit.limit), refused=False)
    assert limit.limit == 16


def test_a_limit_that_is_not_used_up_stays() -> None:
    limit = AdaptiveLimit(most=16, limit=4)
    for _ in range(100):
        run(limit, 2, refused=False)
    assert limit.limit == 4


def test_a_burst_of_refusals_lowers_a_limit_once() -> None:
    limit = AdaptiveLimit(most=64, limit=64)
    run(limit, 64, refused=True)
    assert 44 <= limit.limit < 45


@given(st.lists(st.booleans(), max_size=200))
def test_a_limit_is_never_below_one(refusals: list[bool]) -> None:
    limit = AdaptiveLimit(most=8, limit=8)
    for refused in refusals:
        limit.begin()
        limit.end(refused=refused)
        assert 1 <= limit.limit <= 8
        assert limit.has_room
