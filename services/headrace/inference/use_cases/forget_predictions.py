"""Predictions and labels go by their age."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

from headrace.inference.use_cases.ports import Rows, UnitOfWork

# In one transaction: those who store predictions wait for no more than that.
TOGETHER: Final = 5_000


class ForgetPredictions:
    """The use case."""

    def __init__(self, work: UnitOfWork, retention: timedelta) -> None:
        self._work = work
        self._retention = retention

    async def __call__(self) -> int:
        """Forget what was stored so long ago, and labels whose prediction did; how many predictions."""
        forgotten = await self._forget_all(lambda rows: rows.forget_predictions(self._retention, TOGETHER))
        await self._forget_all(lambda rows: rows.forget_labels(self._retention, TOGETHER))
        return forgotten

    async def _forget_all(self, forget: Callable[[Rows], Awaitable[int]]) -> int:
        """Forget until there are no more; how many there were."""
        forgotten = 0
        while True:
            async with self._work() as work:
                count = await forget(work.rows)
            forgotten += count
            if count < TOGETHER:
                return forgotten
