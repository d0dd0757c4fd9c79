"""The router: keeps Envoy's routes those of the deployments."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from headrace.inference.domain.deployments import Deployment, ServedVersion, expected_signature
from headrace.inference.domain.rollouts import trial
from headrace.inference.use_cases.ports import DataPlane, Route, UnitOfWork

logger = logging.getLogger(__name__)

# How late, at most, this instance's Envoys hear of a change that another instance made.
PASS_SECONDS = 0.5


class Router:
    """Routes as the deployments' traffic says; every instance does so for its own Envoys."""

    def __init__(self, work: UnitOfWork, data_plane: DataPlane) -> None:
        self._work = work
        self._data_plane = data_plane
        self._wake = asyncio.Event()
        self._failing = False

    def wake(self) -> None:
        """Something changed: do not wait for the next pass."""
        self._wake.set()

    async def run(self) -> None:
        """Route until cancelled. While the database is away, Envoys keep what they have."""
        while True:
            self._wake.clear()
            try:
                await self.route()
                self._failing = False
            except Exception as error:
                logger.warning("routes are kept as they are: %r", error, exc_info=not self._failing)
                self._failing = True
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), PASS_SECONDS)

    async def route(self) -> None:
        """Tell Envoy what the deployments' traffic is now."""
        async with self._work() as work:
            deployments = await work.rows.all_deployments()
            versions = await work.rows.all_served_versions()
        self._data_plane.update(
            {
                deployment.name: Route(
                    weights=deployment.traffic,
                    signature=_signature(deployment, versions.get(deployment.model, [])),
                    trial=trial(deployment.rollout, deployment.plan),
                    # While it is loaded anew, either may hold.
                    most_rows=min(deployment.serving.max_batch_size, deployment.served.max_batch_size),
                    scale=deployment.placed,
                )
                for deployment in deployments
                if deployment.traffic
            }
        )


def _signature(deployment: Deployment, versions: list[ServedVersion]) -> str:
    newest = max(deployment.traffic)
    return next((expected_signature(v.inputs) for v in versions if v.version == newest), "")
