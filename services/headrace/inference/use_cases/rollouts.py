"""The reconciler: makes Triton and Envoy what the deployments say, again and again.

Each pass reads every deployment and Triton's own word on what is loaded, and does the next thing for each. It
keeps nothing between passes that a restart would miss, except what a step's outcomes are counted from.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

from headrace.errors import HeadraceError
from headrace.inference.domain.deployments import Deployment, ServedVersion, expected_signature
from headrace.inference.domain.rollouts import (
    Outcomes,
    Rollout,
    RolloutState,
    advance,
    load_failed,
    loaded,
    next_rollout,
    superseded,
    wanted_versions,
    weights,
)
from headrace.inference.use_cases.ports import DataPlane, LoadError, ModelServer, Route, UnitOfWork
from headrace.runtime.clock import Clock
from headrace.runtime.faults import fault_point
from headrace.runtime.ids import new_id
from headrace.telemetry import names, tracing

logger = logging.getLogger(__name__)

PASS_SECONDS = 0.5
# Requests that were routed to a version just before it lost its traffic are still being answered.
DRAIN = timedelta(seconds=2)


class Reconciler:
    """Converges deployments; one instance of the service runs it at a time."""

    def __init__(self, work: UnitOfWork, server: ModelServer, clock: Clock) -> None:
        self._work = work
        self._server = server
        self._clock = clock
        self._wake = asyncio.Event()
        # Triton's counts when a rollout's step began, by rollout and step.
        self._baselines: dict[tuple[str, int], dict[int, Outcomes]] = {}

    def wake(self) -> None:
        """Something changed: do not wait for the next pass."""
        self._wake.set()

    async def run(self) -> None:
        """Reconcile until cancelled."""
        while True:
            self._wake.clear()
            await self.reconcile()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), PASS_SECONDS)

    async def reconcile(self) -> None:
        """One pass over every deployment; one that fails does not hold up the others."""
        try:
            ready = await self._server.loaded()
        except HeadraceError as error:
            logger.warning("Triton does not answer: %s", error)
            return
        async with self._work() as work:
            deployments = await work.rows.all_deployments()
        for deployment in deployments:
            try:
                await self._converge(deployment, ready.get(deployment.name, frozenset()))
            except HeadraceError as error:
                logger.warning("deployment %s: %s", deployment.name, error)
                await self._note(deployment, str(error))

    async def _converge(self, deployment: Deployment, ready: frozenset[int]) -> None:
        if deployment.deleted:
            await self._remove(deployment, ready)
            return
        async with self._work() as work:
            versions = {v.version: v for v in await work.rows.served_versions(deployment.model)}
            tried = await work.rows.rolled_out(deployment.name)
        target = next_rollout(list(versions), deployment.stable, deployment.rollout, rolled_out=tried)
        if target is not None:
            await self._begin(deployment, versions[target])
            return
        ready = await self._load_wanted(deployment, versions, ready)
        if ready != deployment.loaded:
            await self._save_loaded(deployment, ready)
        rollout = deployment.rollout
        if rollout is None or rollout.state.ended:
            return
        if rollout.state is RolloutState.LOADING:
            if rollout.to_version in ready:
                fault_point("inference.after-load")
                await self._step(deployment, rollout, loaded(rollout, deployment.plan, self._clock()))
            return
        new, old = await self._outcomes(rollout)
        following = advance(rollout, deployment.plan, new, old, self._clock())
        if following != rollout:
            await self._step(deployment, rollout, following)

    async def _begin(self, deployment: Deployment, version: ServedVersion) -> None:
        """Start a rollout; one in progress gives way to it."""
        now = self._clock()
        with tracing.span(
            names.SPAN_ROLL_OUT,
            parent=version.traceparent,
            attributes=_attributes(deployment, version.version),
        ):
            async with self._work() as work:
                current = await work.rows.deployment(deployment.name, lock=True)
                if current.rollout is not None and not current.rollout.state.ended:
                    given_up = superseded(current.rollout, version.version, now)
                    await work.rows.put_rollout(given_up)
                    current = replace(current, rollout=given_up, traffic=weights(given_up))
                await work.rows.put_rollout(
                    Rollout(
                        id=new_id(),
                        deployment=deployment.name,
                        from_version=current.stable,
                        to_version=version.version,
                        state=RolloutState.LOADING,
                        traceparent=tracing.current_traceparent() or version.traceparent,
                        create_time=now,
                        step_time=now,
                        message=f"version {version.version} is being loaded",
                    )
                )
                await work.rows.save_deployment(replace(current, message="", update_time=now))
                await work.changed(deployment.name)
        self.wake()

    async def _load_wanted(
        self, deployment: Deployment, versions: dict[int, ServedVersion], ready: frozenset[int]
    ) -> frozenset[int]:
        """Make Triton's versions the wanted ones; answers what is loaded then."""
        wanted = wanted_versions(deployment.traffic, deployment.rollout) & set(versions)
        rollout = deployment.rollout
        drained = rollout is None or rollout.end_time is None or (self._clock() - rollout.end_time >= DRAIN)
        if wanted == ready or (wanted < ready and not drained):
            return ready
        if not wanted:
            return ready
        parent = rollout.traceparent if rollout is not None and not rollout.state.ended else ""
        with tracing.span(
            names.SPAN_LOAD_VERSION, parent=parent, attributes=_attributes(deployment, max(wanted))
        ):
            try:
                await self._server.load(deployment.name, [versions[number] for number in sorted(wanted)])
            except LoadError as error:
                if rollout is None or rollout.state.ended or rollout.to_version in ready:
                    await self._note(deployment, str(error))
                    return ready
                await self._step(deployment, rollout, load_failed(rollout, str(error), self._clock()))
                return ready
        return frozenset(wanted)

    async def _step(self, deployment: Deployment, before: Rollout, after: Rollout) -> None:
        """Store a rollout's next state with the traffic that follows from it, if nobody else changed it."""
        with tracing.span(
            names.SPAN_SHIFT_TRAFFIC,
            parent=after.traceparent,
            attributes={
                **_attributes(deployment, after.to_version),
                names.ROLLOUT_STATE: str(after.state),
                names.ROLLOUT_WEIGHT: after.weight,
            },
        ):
            async with self._work() as work:
                current = await work.rows.deployment(deployment.name, lock=True)
                if current.rollout != before or current.deleted:
                    return
                await work.rows.put_rollout(after)
                await work.rows.save_deployment(
                    replace(
                        current,
                        traffic=weights(after),
                        loaded=current.loaded | ({after.to_version} if after.weight else set()),
                        message="",
                        update_time=self._clock(),
                    )
                )
                await work.changed(deployment.name)
        fault_point("inference.after-step-commit")
        logger.info("deployment %s: %s: %s", deployment.name, after.state, after.message)
        self.wake()

    async def _outcomes(self, rollout: Rollout) -> tuple[Outcomes, Outcomes]:
        """Answers of the new and the old version since the step began."""
        counts = await self._server.outcomes(rollout.deployment)
        key = (rollout.id, rollout.step)
        if key not in self._baselines:
            self._baselines = {
                key: counts,
                **{k: v for k, v in self._baselines.items() if k[0] != rollout.id},
            }
        base = self._baselines[key]
        return _since(counts, base, rollout.to_version), _since(counts, base, rollout.from_version)

    async def _save_loaded(self, deployment: Deployment, ready: frozenset[int]) -> None:
        async with self._work() as work:
            current = await work.rows.deployment(deployment.name, lock=True)
            await work.rows.save_deployment(replace(current, loaded=ready, message=""))

    async def _note(self, deployment: Deployment, message: str) -> None:
        if deployment.message == message:
            return
        async with self._work() as work:
            current = await work.rows.deployment(deployment.name, lock=True)
            await work.rows.save_deployment(replace(current, message=message))

    async def _remove(self, deployment: Deployment, ready: frozenset[int]) -> None:
        if self._clock() - deployment.update_time < DRAIN:
            return
        if ready:
            await self._server.unload(deployment.name)
        async with self._work() as work:
            await work.rows.forget_deployment(deployment.name)


class Router:
    """Keeps Envoy's routes those of the deployments; every instance does so for its own Envoys."""

    def __init__(self, work: UnitOfWork, data_plane: DataPlane) -> None:
        self._work = work
        self._data_plane = data_plane
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Something changed: do not wait for the next pass."""
        self._wake.set()

    async def run(self) -> None:
        """Route until cancelled."""
        while True:
            self._wake.clear()
            await self.route()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), PASS_SECONDS)

    async def route(self) -> None:
        """Tell Envoy what the deployments' traffic is now."""
        async with self._work() as work:
            deployments = [d for d in await work.rows.all_deployments() if d.traffic]
            versions = {d.name: await work.rows.served_versions(d.model) for d in deployments}
        self._data_plane.update(
            {
                deployment.name: Route(
                    weights=deployment.traffic, signature=_signature(deployment, versions[deployment.name])
                )
                for deployment in deployments
            }
        )


def _signature(deployment: Deployment, versions: list[ServedVersion]) -> str:
    newest = max(deployment.traffic)
    return next((expected_signature(v.inputs) for v in versions if v.version == newest), "")


def _since(counts: dict[int, Outcomes], base: dict[int, Outcomes], version: int) -> Outcomes:
    now, then = counts.get(version, Outcomes()), base.get(version, Outcomes())
    if now.succeeded < then.succeeded or now.failed < then.failed:
        # Triton was restarted and counts from zero.
        return now
    return Outcomes(now.succeeded - then.succeeded, now.failed - then.failed)


def _attributes(deployment: Deployment, version: int) -> dict[str, str | int]:
    return {
        names.DEPLOYMENT: deployment.name,
        names.MODEL: deployment.model,
        names.MODEL_VERSION: version,
    }
