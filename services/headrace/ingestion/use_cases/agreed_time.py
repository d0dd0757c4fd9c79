"""The time, for whoever removes things for their age: by a clock that has jumped all of them are old."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from headrace.errors import FailedPrecondition
from headrace.ingestion.use_cases.ports import Catalogue
from headrace.runtime.clock import Clock

TOLERANCE: Final = timedelta(hours=1)
"""Ages are of hours and days: clocks that are closer make no difference to what is old."""


class AgreedTime:
    """The service's clock, as long as the database's does not contradict it."""

    def __init__(self, catalogue: Catalogue, clock: Clock) -> None:
        self._catalogue = catalogue
        self._clock = clock

    async def __call__(self) -> datetime:
        """The present moment. Raises FailedPrecondition CLOCKS_DISAGREE, and what the database raises."""
        theirs = await self._catalogue.now()
        ours = self._clock()
        if abs(ours - theirs) > TOLERANCE:
            raise FailedPrecondition(
                "CLOCKS_DISAGREE",
                f"this service's clock says {ours:%Y-%m-%d %H:%M:%S} UTC, and PostgreSQL's "
                f"{theirs:%Y-%m-%d %H:%M:%S} UTC; set the wrong one right, nothing goes for its age before",
            )
        return ours
