"""The router: keeps Envoy's routes those of the deployments."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from headrace.inference.domain.deployments import Deployment, ServedVersion, expected_signature
from headrace.inference.domain.rollouts import trial
from headrace.inference.use_cases.ports import DataPlane, Route, UnitOfWork
from headrace.runtime.waking import woken

logger = logging.getLogger(__name__)

# How late, at most, this instance's Envoys hear of a change while nobody tells this instance of changes.
PASS_SECONDS: Final = 0.5
# While somebody does, all are looked at to be sure.
TOLD_PASS_SECONDS: Final = 5.0
# Where more have changed at once, all are read: those that have not are known.
MOST_CHANGED: Final = 100


class Router:
    """Routes as the deployments' traffic says; every instance does so for its own Envoys."""

    def __init__(self, work: UnitOfWork, data_plane: DataPlane) -> None:
        self._work = work
        self._data_plane = data_plane
        self._changed: set[str] = set()
        self._wake = asyncio.Event()
        self._seconds = PASS_SECONDS
        # Of the loop's clock: when all are to be looked at.
        self._due = 0.0
        self._failing = False
        # By deployment: of what its route was made, and it.
        self._routes: dict[str, tuple[Deployment, ServedVersion | None, Route]] = {}

    def changed(self, deployment: str) -> None:
        """It was changed, by whichever instance: do not wait for the next pass."""
        self._changed.add(deployment)
        self._wake.set()

    def told(self) -> None:
        """From here on `changed` is called for every change."""
        self._look_each(TOLD_PASS_SECONDS)

    def not_told(self) -> None:
        """`changed` may not be called any more."""
        self._look_each(PASS_SECONDS)

    def _look_each(self, seconds: float) -> None:
        """Look at all deployments now, and from then on so often."""
        self._seconds = seconds
        self._due = 0.0
        self._wake.set()

    async def run(self) -> None:
        """Route until cancelled. While the database is away, Envoys keep what they have."""
        now = asyncio.get_running_loop().time
        while True:
            self._wake.clear()
            try:
                if now() >= self._due or len(self._changed) > MOST_CHANGED:
                    self._due = now() + self._seconds
                    await self.route()
                elif self._changed:
                    await self._route_changed()
                self._failing = False
            except Exception as error:
                logger.warning("routes are kept as they are: %r", error, exc_info=not self._failing)
                self._failing = True
                self._due = now() + PASS_SECONDS
            await woken(self._wake, self._due - now())

    async def route(self) -> None:
        """Tell Envoy what the deployments' traffic is now."""
        self._changed.clear()
        async with self._work.reading() as work:
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

    async def _route_changed(self) -> None:
        """Tell Envoy of those alone that have changed."""
        names = frozenset(self._changed)
        self._changed.clear()
        routes: dict[str, Route | None] = dict.fromkeys(names)
        async with self._work.reading() as work:
            for deployment in await work.rows.deployments_named(names):
                if deployment.traffic:
                    newest = await work.rows.served_version(deployment.model, max(deployment.traffic))
                    routes[deployment.name] = _route(deployment, newest)
        self._data_plane.change(routes)


def route_of(deployment: Deployment, versions: Iterable[ServedVersion]) -> Route:
    """How requests to a deployment with traffic are routed; its newest version that has any counts."""
    return _route(deployment, _newest(deployment, versions))


def _newest(deployment: Deployment, versions: Iterable[ServedVersion]) -> ServedVersion | None:
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
