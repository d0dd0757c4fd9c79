"""A request found its deployment on no server: it waits here until there is one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from headrace.errors import DeadlineExceeded, NotFound
from headrace.inference.domain.scaling import Scale
from headrace.inference.use_cases import metrics
from headrace.inference.use_cases.ports import UnitOfWork


class Routes(Protocol):
    """What Envoy is told."""

    def scale(self, deployment: str) -> Scale | None:
        """Where requests find a deployment; None where none has that name."""

    async def changed(self) -> None:
        """Wait until it is told something else."""


class WakeDeployment:
    """Has a deployment loaded, and waits for it."""

    def __init__(
        self, work: UnitOfWork, routes: Routes, *, demanded: Callable[[], None], seconds: float
    ) -> None:
        """`demanded` is called when somebody asked; `seconds`: longest wait."""
        self._work = work
        self._routes = routes
        self._demanded = demanded
        self._seconds = seconds

    async def __call__(self, deployment: str) -> Scale:
        """Where requests find it now.

        Raises NotFound where nobody deployed it, DeadlineExceeded/STILL_LOADING where it took too long, and
        TimeoutError where the database did.
        """
        is_told = False
        with metrics.WAKE_SECONDS.time():
            try:
                async with asyncio.timeout(self._seconds):
                    while not (scale := self._scale(deployment)).replicas:
                        if is_told:
                            await self._routes.changed()
                            continue
                        async with self._work() as work:
                            await work.rows.record_demand(deployment)
                        self._demanded()
                        # It may have been placed meanwhile.
                        is_told = True
                    return scale
            except TimeoutError:
                if not is_told:
                    raise
                raise DeadlineExceeded(
                    "STILL_LOADING",
                    f"model {deployment} was not loaded within {self._seconds:g} s; it is still being loaded",
                ) from None

    def _scale(self, deployment: str) -> Scale:
        scale = self._routes.scale(deployment)
        if scale is None:
            raise NotFound("DEPLOYMENT_NOT_FOUND", f"no model {deployment} is deployed")
        return scale
