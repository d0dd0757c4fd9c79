"""What comes back from production: promoted versions, predictions, feedback."""

from __future__ import annotations

from datetime import datetime

from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.use_cases.ports import LoggedPrediction, UnitOfWork


class Production:
    """Stores what events tell, once each."""

    def __init__(self, work: UnitOfWork) -> None:
        self._work = work

    async def version_promoted(self, event_id: str, version: ServedVersion) -> bool:
        """Remember a promoted version; whether that was news."""
        async with self._work() as work:
            if not await work.first_delivery("model-versions", event_id):
                return False
            await work.rows.put_served_version(version)
            return True

    async def predicted(self, prediction: LoggedPrediction) -> None:
        """Keep a prediction."""
        async with self._work() as work:
            await work.rows.put_predictions([prediction])

    async def labelled(
        self, event_id: str, deployment: str, prediction_id: str, label: float | str, time: datetime
    ) -> None:
        """Keep a true label, whether or not its prediction has arrived yet."""
        async with self._work() as work:
            if await work.first_delivery("feedback", event_id):
                await work.rows.put_feedback(deployment, prediction_id, label, time)
