"""A subject out of the prediction log and the requests over Kafka, and out of what is still on its way."""

from __future__ import annotations

from datetime import timedelta

from headrace.inference.use_cases.ports import UnitOfWork
from headrace.runtime.clock import Clock
from headrace.runtime.faults import fault_point


class ErasePredictions:
    """The use case."""

    def __init__(self, work: UnitOfWork, clock: Clock) -> None:
        self._work = work
        self._clock = clock

    async def __call__(self, erasure: str, dataset: str, subject: str) -> int:
        """Remove a subject's predictions of models of the dataset; how many it has been for this erasure.

        It may be repeated for the same erasure: the number counts each of them once. Predictions that were
        made before it are removed when they come later. The subject's requests over Kafka go with their
        answers, and those that were sent before it and have none get none.
        """
        async with self._work() as work:
            count = await work.rows.erase_predictions(erasure, dataset, subject, self._clock())
        fault_point("inference.after-erase-commit")
        return count


class ForgetErasures:
    """The use case: what was erased is remembered while the topic may still have predictions from before."""

    def __init__(self, work: UnitOfWork, clock: Clock, retention: timedelta) -> None:
        self._work = work
        self._clock = clock
        self._retention = retention

    async def __call__(self) -> int:
        """Forget the others; how many there were."""
        async with self._work() as work:
            return await work.rows.forget_erasures(self._clock() - self._retention)
