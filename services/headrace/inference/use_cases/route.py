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
        # By deployment: of what its route was made, and it.
        self._routes: dict[str, tuple[Deployment, ServedVersion | None, Route]] = {}

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
        routes = {}
        for deployment in deployments:
            if deployment.traffic:
                newest = _newest(deployment, versions.get(deployment.model, []))
                known = self._routes.get(deployment.name)
                if known is None or known[0] is not deployment or known[1] is not newest:
                    known = deployment, newest, _route(deployment, newest)
                routes[deployment.name] = known
        self._routes = routes
        self._data_plane.update({name: route for name, (_, _, route) in routes.items()})


def _newest(deployment: Deployment, versions: list[ServedVersion]) -> ServedVersion | None:
    """The newest version with traffic."""
    number = max(deployment.traffic)
    return next((version for version in versions if version.version == number), None)


def _route(deployment: Deployment, newest: ServedVersion | None) -> Route:
    return Route(
        weights=deployment.traffic,
        signature=expected_signature(newest.inputs) if newest else "",
        trial=trial(deployment.rollout, deployment.plan),
        # While it is loaded anew, either may hold.
        most_rows=min(deployment.serving.max_batch_size, deployment.served.max_batch_size),
        scale=deployment.placed,
    )
