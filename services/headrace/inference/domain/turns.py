"""Whose turn it is: requests that wait for a model, by priority, no more at once than it takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from headrace.inference.domain.requests import Priority

T = TypeVar("T")

# Of 21 turns where all wait: so many each, and none starves.
WEIGHTS: Final[Mapping[Priority, int]] = {Priority.HIGH: 16, Priority.NORMAL: 4, Priority.LOW: 1}
_DECREASE: Final = 0.7


@dataclass(slots=True)
class AdaptiveLimit:
    """How many calls may be under way at once: additive increase, multiplicative decrease, as TCP does.

    A round is as many answers as the limit has calls. One without a refusal while all places were taken
    raises the limit by one; a refusal lowers it, once for all calls that were under way with the refused one.
    """

    most: int
    limit: float
    under_way: int = 0
    _answered: int = 0
    _was_full: bool = False
    _forgiven: int = 0

    @property
    def has_room(self) -> bool:
        """Whether another call may begin."""
        return self.under_way < int(self.limit)

    def begin(self) -> None:
        """A call begins."""
        self.under_way += 1
        self._was_full = self._was_full or not self.has_room

    def end(self, *, refused: bool) -> None:
        """A call has ended; `refused`: there was no room for it, or nobody to answer."""
        self.under_way -= 1
        if refused:
            if self._forgiven == 0:
                self._forgiven = self.under_way
                self.limit = max(1.0, self.limit * _DECREASE)
            else:
                self._forgiven -= 1
            self._answered, self._was_full = 0, False
            return
        self._forgiven = max(0, self._forgiven - 1)
        self._answered += 1
        if self._answered >= self.limit:
            if self._was_full:
                self.limit = min(float(self.most), self.limit + 1)
            self._answered, self._was_full = 0, False


@dataclass(slots=True)
class _Line(Generic[T]):
    """Those who wait for one deployment. `passed`: how much of its share each priority has had."""

    limit: AdaptiveLimit
    waiting: dict[Priority, dict[T, None]] = field(default_factory=lambda: {it: {} for it in Priority})
    passed: dict[Priority, float] = field(default_factory=lambda: dict.fromkeys(Priority, 0.0))
    now: float = 0.0


class Turns(Generic[T]):
    """Gives turns to tickets, of any hashable kind, each waiting once at most."""

    def __init__(self, *, most: int, first: int) -> None:
        """`most` calls of a deployment at once, and `first` of them before anything is known of it."""
        self._most = most
        self._first = first
        self._lines: dict[str, _Line[T]] = {}
        # Deployments that may have a turn to give; in a round, so that none waits for another.
        self._round: deque[str] = deque()

    def wait(self, deployment: str, priority: Priority, ticket: T) -> None:
        """Stand in line."""
        line = self._lines.get(deployment)
        if line is None:
            line = self._lines[deployment] = _Line(AdaptiveLimit(self._most, float(self._first)))
        if not line.waiting[priority]:
            # Who was away has saved nothing up.
            line.passed[priority] = max(line.passed[priority], line.now)
        line.waiting[priority][ticket] = None
        self._offer(deployment)

    def leave(self, deployment: str, priority: Priority, ticket: T) -> None:
        """Out of the line, without a turn; whoever does not wait is fine."""
        if line := self._lines.get(deployment):
            line.waiting[priority].pop(ticket, None)
            self._forget(deployment, line)

    def next(self) -> T | None:
        """Whose turn it is now; its call counts as under way until `end`."""
        while self._round:
            deployment = self._round.popleft()
            line = self._lines.get(deployment)
            if line is None or not line.limit.has_room:
                continue
            priority = min(
                (it for it in Priority if line.waiting[it]), key=line.passed.__getitem__, default=None
            )
            if priority is None:
                continue
            ticket = next(iter(line.waiting[priority]))
            del line.waiting[priority][ticket]
            line.now = line.passed[priority]
            line.passed[priority] += 1 / WEIGHTS[priority]
            line.limit.begin()
            self._offer(deployment)
            return ticket
        return None

    def end(self, deployment: str, *, refused: bool) -> None:
        """A call that had its turn has ended; `refused`: there was no room for it, or nobody to answer."""
        line = self._lines[deployment]
        line.limit.end(refused=refused)
        self._offer(deployment)
        self._forget(deployment, line)

    def limit(self, deployment: str) -> int:
        """How many calls of a deployment may be under way."""
        line = self._lines.get(deployment)
        return self._first if line is None else int(line.limit.limit)

    def _offer(self, deployment: str) -> None:
        if deployment not in self._round:
            self._round.append(deployment)

    def _forget(self, deployment: str, line: _Line[T]) -> None:
        # Names come from requests: any number of them, of deployments that there are not.
        if not line.limit.under_way and not any(line.waiting.values()) and len(self._lines) > _KEPT:
            del self._lines[deployment]


_KEPT: Final = 1000
