"""True labels by RPC, with the rules of the topic."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from headrace.errors import FieldViolation, InvalidArgument
from headrace.inference.domain.quality import label_fault
from headrace.inference.use_cases import metrics
from headrace.inference.use_cases.ports import TrueLabel, UnitOfWork
from headrace.runtime.clock import Clock

INVALID_FEEDBACK: Final = "INVALID_FEEDBACK"

GivenLabel = tuple[str, float | str | None, datetime | None]
"""Prediction id, label, and when it was known, as given."""


class SubmitFeedback:
    """Stores labels, all of a call or none."""

    def __init__(self, work: UnitOfWork, clock: Clock) -> None:
        self._work = work
        self._clock = clock

    async def __call__(self, deployment: str, given: Sequence[GivenLabel]) -> int:
        """Store labels, whether or not their predictions are in the log; of how many they are.

        Raises InvalidArgument/INVALID_FEEDBACK, NotFound/DEPLOYMENT_NOT_FOUND.
        """
        now = self._clock()
        labels, faults = [], []
        for place, (prediction_id, label, time) in enumerate(given):
            if fault := label_fault(deployment, prediction_id, label):
                faults.append(FieldViolation(f"labels[{place}].{fault[0]}", fault[1]))
            elif label is not None:
                labels.append(TrueLabel(deployment, prediction_id, label, time or now))
        if faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise InvalidArgument(
                INVALID_FEEDBACK, f"{faults[0].field} {faults[0].description}{more}", fields=faults
            )
        async with self._work() as work:
            await work.rows.deployment(deployment)
            await work.rows.put_feedback(labels)
            joined = await work.rows.count_logged(deployment, {label.prediction_id for label in labels})
        metrics.FEEDBACK.inc(len(labels))
        return joined
