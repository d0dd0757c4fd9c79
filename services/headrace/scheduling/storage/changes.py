"""Who waits for what: PostgreSQL's notifications, handed to those in this process whom they concern.

What was lost with a connection is made good by waking everybody when there is another, and by each waiter's
own time limit.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from headrace.postgres import Pool
from headrace.postgres.listening import listen
from headrace.runtime.waking import woken

CHANNEL: Final = "headrace_scheduling"

_ANY: Final = "*"


class EventWake:
    """A waiter (`use_cases.ports.Wake`)."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake the waiter, now or at its next wait."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Return at the first change since the last call, or after so many seconds."""
        await woken(self._event, seconds)
        self._event.clear()


class PostgresChanges:
    """`use_cases.ports.ChangeFeed` over LISTEN and NOTIFY."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._wakes: defaultdict[str, set[EventWake]] = defaultdict(set)

    @contextmanager
    def any_change(self) -> Iterator[EventWake]:
        """Of any job or node."""
        with self._subscribed(_ANY) as wake:
            yield wake

    @contextmanager
    def of_job(self, job_id: str) -> Iterator[EventWake]:
        """Of one job."""
        with self._subscribed(f"job:{job_id}") as wake:
            yield wake

    @contextmanager
    def of_node(self, node: str) -> Iterator[EventWake]:
        """Of one node, or of the jobs assigned to it."""
        with self._subscribed(f"node:{node}") as wake:
            yield wake

    async def run(self) -> None:
        """Listen until cancelled."""
        await listen(self._pool, CHANNEL, self._tell, begun=self._wake_all)

    def _tell(self, change: Mapping[str, Any]) -> None:
        subjects = [_ANY, *(f"node:{node}" for node in change["nodes"])]
        if "job" in change:
            subjects.append(f"job:{change['job']}")
        for subject in subjects:
            for wake in self._wakes.get(subject, ()):
                wake.set()

    def _wake_all(self) -> None:
        for wakes in self._wakes.values():
            for wake in wakes:
                wake.set()

    @contextmanager
    def _subscribed(self, subject: str) -> Iterator[EventWake]:
        wake = EventWake()
        self._wakes[subject].add(wake)
        try:
            yield wake
        finally:
            self._wakes[subject].discard(wake)
            if not self._wakes[subject]:
                del self._wakes[subject]
