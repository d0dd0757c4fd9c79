"""The reconciler: makes Triton what the deployments say, and moves traffic when it is.

Each pass reads every deployment and Triton's own word on what is loaded, asks the domain what each needs
next, and does it. A deployment's action runs beside the others': a model that loads for a minute holds up no
other's rollback. Nothing is kept between passes that a restart would miss.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from headrace.errors import HeadraceError, NotFound, Unavailable
from headrace.inference.domain.analysis import same_findings, same_standings
from headrace.inference.domain.convergence import (
    Action,
    Begin,
    Forget,
    GiveUp,
    Judge,
    Leave,
    Load,
    Place,
    Record,
    Situation,
    Start,
    Unload,
    next_action,
)
from headrace.inference.domain.deployments import Deployment
from headrace.inference.domain.rollouts import (
    Rollout,
    RolloutState,
    advance,
    load_failed,
    loaded,
    process_died,
    superseded,
    weights,
)
from headrace.inference.domain.serving import Serving
from headrace.inference.use_cases import metrics
from headrace.inference.use_cases.judge_step import JudgeStep
from headrace.inference.use_cases.ports import Loaded, LoadError, ModelServer, UnitOfWork
from headrace.runtime.clock import Clock
from headrace.runtime.faults import fault_point
from headrace.runtime.ids import new_id
from headrace.runtime.waking import woken
from headrace.telemetry import names, tracing

logger = logging.getLogger(__name__)

PASS_SECONDS = 0.5
# A version that has traffic and does not load, after a restart of Triton say, is tried again after this.
RETRY_SECONDS = 5.0
# What woke it is told to Envoys meanwhile, which takes a tenth of a pass, and is what callers wait for.
ROUTES_FIRST_SECONDS = 0.02
# Deployments that are looked at before others have a turn.
TOGETHER = 100


class Reconciler:
    """Converges deployments; one instance of the service runs it at a time."""

    def __init__(
        self, work: UnitOfWork, server: ModelServer, clock: Clock, *, changed: Callable[[], None]
    ) -> None:
        """`changed` is called after every change of a deployment."""
        self._work = work
        self._server = server
        self._clock = clock
        self._changed = changed
        self._judge_step = JudgeStep(work, clock)
        self._wake = asyncio.Event()
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._failing = False
        # Settings that did not load. They are tried once, and again after a restart.
        self._refused: dict[str, Serving] = {}

    def wake(self) -> None:
        """Something changed: do not wait for the next pass."""
        self._wake.set()

    async def run(self) -> None:
        """Reconcile until cancelled."""
        metrics.LEADER.set(1)
        try:
            while True:
                self._wake.clear()
                await self._attempt()
                await woken(self._wake, PASS_SECONDS)
                await asyncio.sleep(ROUTES_FIRST_SECONDS)
        finally:
            metrics.LEADER.set(0)
            for task in self._busy.values():
                task.cancel()
            await asyncio.gather(*self._busy.values(), return_exceptions=True)

    async def _attempt(self) -> None:
        """Make a pass; where something keeps it from succeeding, the next one is the repair."""
        try:
            await self.reconcile()
        except Exception as error:
            # Where it happened once: an outage fails in the same way again and again.
            logger.warning("a pass failed, trying again: %r", error, exc_info=not self._failing)
            self._failing = True
            return
        self._failing = False

    async def reconcile(self) -> None:
        """Look at every deployment once, and begin what those need that are not busy."""
        # What is read from here on may be older than what ends in the meantime.
        busy = frozenset(self._busy)
        try:
            ready: Mapping[str, Loaded] | None = await self._server.loaded()
        except Unavailable as error:
            ready, reason = None, str(error)
        metrics.TRITON_UP.set(ready is not None)
        async with self._work.reading() as work:
            deployments = await work.rows.all_deployments()
            versions = await work.rows.all_served_versions()
            tried = await work.rows.all_rolled_out()
        metrics.DEPLOYMENTS.set(len(deployments))
        for place, deployment in enumerate(deployments):
            if place % TOGETHER == 0:
                # Ten thousand take a quarter of a second, which nothing else on this loop is to wait for.
                await asyncio.sleep(0)
            if deployment.name in busy:
                continue
            if ready is None:
                await self._note(deployment, reason, loaded=frozenset())
                continue
            found = ready[deployment.name]
            placed = deployment.placed.servers(self._server.count)
            arriving = deployment.scale.servers(self._server.count)
            situation = Situation(
                deployment,
                {version.version: version for version in versions.get(deployment.model, [])},
                tried.get(deployment.name, frozenset()),
                loaded=found.on(placed),
                anywhere=found.anywhere,
                died=found.died,
                refused=self._refused.get(deployment.name),
                arriving=found.on(arriving),
                leaving=found.outside(placed | arriving),
                away=found.away(placed),
            )
            action = next_action(situation, self._clock())
            if action is not None:
                self._begin_task(situation, action)

    def _begin_task(self, situation: Situation, action: Action) -> None:
        name = situation.deployment.name
        task = asyncio.create_task(self._carry_out(situation, action), name=f"{type(action).__name__} {name}")
        self._busy[name] = task
        task.add_done_callback(lambda _: self._busy.pop(name, None))

    async def _carry_out(self, situation: Situation, action: Action) -> None:
        """Do one thing for one deployment; one that fails does not hold up the others."""
        deployment = situation.deployment
        try:
            if await self._do(situation, action):
                self._changed()
        except HeadraceError as error:
            logger.warning("deployment %s: %s", deployment.name, error)
            with suppress(NotFound):
                await self._note(deployment, str(error))
        except Exception as error:
            logger.exception("deployment %s: %s failed, trying again", deployment.name, type(action).__name__)
            # The database may be what failed: then nobody can be told.
            with suppress(Exception):
                await self._note(deployment, f"{type(error).__name__}: {error}")
            await asyncio.sleep(RETRY_SECONDS)

    async def _do(self, situation: Situation, action: Action) -> bool:
        """Whether something changed."""
        deployment = situation.deployment
        match action:
            case Begin():
                return await self._begin(deployment, action)
            case Load():
                return await self._load(situation, action)
            case Place() | Leave() | Unload() | Forget():
                await self._move(deployment, action)
                return True
            case Record():
                return await self._save(deployment, message="", loaded=action.loaded)
            case Start():
                fault_point("inference.after-load")
                counts = await self._server.outcomes(deployment.name)
                first = loaded(action.rollout, deployment.plan, counts, self._clock())
                return await self._step(deployment, action.rollout, first)
            case GiveUp():
                ended = process_died(action.rollout, self._clock())
                return await self._step(deployment, action.rollout, ended)
            case Judge():
                return await self._judge(situation, action.rollout)

    async def _move(self, deployment: Deployment, action: Place | Leave | Unload | Forget) -> None:
        match action:
            case Place():
                async with self._work() as work:
                    await work.rows.record_placed(deployment.name, action.scale, self._clock())
                    await work.changed(deployment.name)
            case Leave():
                await self._server.leave(deployment.name, deployment.placed.servers(self._server.count))
            case Unload():
                await self._server.unload(deployment.name)
            case Forget():
                async with self._work() as work:
                    await work.rows.forget_deployment(deployment.name)

    async def _begin(self, deployment: Deployment, action: Begin) -> bool:
        """Start a rollout; one in progress gives way to it."""
        now = self._clock()
        version = action.version
        with tracing.span(
            names.SPAN_ROLL_OUT,
            parent=version.traceparent,
            attributes=_attributes(deployment, version.version),
        ):
            async with self._work() as work:
                current = await work.rows.deployment(deployment.name, lock=True)
                if current.rollout != deployment.rollout or current.deleted:
                    return True
                if current.rollout is not None and not current.rollout.state.ended:
                    given_up = superseded(current.rollout, version.version, now)
                    await work.rows.put_rollout(given_up)
                    current = replace(current, rollout=given_up, traffic=weights(given_up))
                    metrics.ROLLOUTS.labels(str(given_up.state)).inc()
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
        logger.info("deployment %s: version %d is rolled out", deployment.name, version.version)
        return True

    async def _load(self, situation: Situation, action: Load) -> bool:
        """Make Triton's versions the wanted ones; a rollout whose version does not load ends."""
        deployment, rollout = situation.deployment, situation.deployment.rollout
        current = rollout if rollout is not None and not rollout.state.ended else None
        with tracing.span(
            names.SPAN_LOAD_VERSION,
            parent=current.traceparent if current else "",
            attributes=_attributes(deployment, action.versions[-1].version),
        ):
            try:
                with metrics.LOAD_SECONDS.time():
                    await self._server.load(
                        deployment.name, action.versions, action.serving, self._servers(action)
                    )
            except LoadError as error:
                if action.serving != deployment.served:
                    await self._keep_serving(deployment, action, error)
                    return True
                if current is not None and current.to_version not in situation.loaded:
                    ended = load_failed(current, str(error), self._clock())
                    return await self._step(deployment, current, ended)
                logger.warning("deployment %s: %s", deployment.name, error)
                await self._note(deployment, str(error))
                await asyncio.sleep(RETRY_SECONDS)
                return True
        # Whatever was known when it began: this is how they are served.
        async with self._work() as work:
            await work.rows.record_served(deployment.name, action.serving)
        return True

    def _servers(self, action: Load) -> frozenset[int]:
        return action.on.servers(self._server.count)

    async def _keep_serving(self, deployment: Deployment, action: Load, error: LoadError) -> None:
        """Go back to the settings before, on every server."""
        self._refused[deployment.name] = action.serving
        refused = f"settings refused ({action.serving.text()}), the ones before go on: {error}"
        logger.warning("deployment %s: %s", deployment.name, refused)
        await self._note(deployment, refused)
        with suppress(LoadError):
            await self._server.load(
                deployment.name, action.versions, deployment.served, self._servers(action)
            )

    async def _step(self, deployment: Deployment, before: Rollout, after: Rollout) -> bool:
        """Store a rollout's next state with the traffic that follows from it, if nobody else changed it."""
        with tracing.span(
            names.SPAN_SHIFT_TRAFFIC,
            parent=after.traceparent,
            attributes={
                **_attributes(deployment, after.to_version),
                names.ROLLOUT: after.id,
                names.ROLLOUT_STATE: str(after.state),
                names.ROLLOUT_WEIGHT: after.weight,
            },
        ):
            async with self._work() as work:
                current = await work.rows.deployment(deployment.name, lock=True)
                if current.rollout != before or current.deleted:
                    return True
                await work.rows.put_rollout(after)
                await work.rows.save_deployment(
                    replace(current, traffic=weights(after), message="", update_time=self._clock())
                )
                await work.changed(deployment.name)
        fault_point("inference.after-step-commit")
        if after.state.ended:
            metrics.ROLLOUTS.labels(str(after.state)).inc()
        logger.info("deployment %s: %s: %s", deployment.name, after.state, after.message)
        return True

    async def _judge(self, situation: Situation, rollout: Rollout) -> bool:
        """Judge a rollout's step, and go on, go back or stay as that says."""
        deployment = situation.deployment
        counts = await self._server.outcomes(deployment.name)
        judgement = await self._judge_step(deployment, rollout, situation.versions, counts)
        following = advance(rollout, deployment.plan, judgement, counts, self._clock())
        if (following.state, following.step) != (rollout.state, rollout.step):
            return await self._step(deployment, rollout, following)
        if not same_findings(rollout.judgement, following.judgement):
            async with self._work() as work:
                current = await work.rows.deployment(deployment.name, lock=True)
                if current.rollout == rollout:
                    await work.rows.put_rollout(following)
                    if not same_standings(rollout.judgement, following.judgement):
                        await work.changed(deployment.name)
        return False

    async def _note(
        self, deployment: Deployment, message: str, *, loaded: frozenset[int] | None = None
    ) -> None:
        """Tell users what keeps a deployment from being right."""
        loaded = deployment.loaded if loaded is None else loaded
        if (deployment.message, deployment.loaded) != (message, loaded):
            await self._save(deployment, message=message, loaded=loaded)

    async def _save(self, deployment: Deployment, *, message: str, loaded: frozenset[int]) -> bool:
        async with self._work() as work:
            current = await work.rows.deployment(deployment.name, lock=True)
            await work.rows.save_deployment(replace(current, loaded=loaded, message=message))
        return True


def _attributes(deployment: Deployment, version: int) -> dict[str, str | int]:
    return {
        names.DEPLOYMENT: deployment.name,
        names.MODEL: deployment.model,
        names.MODEL_VERSION: version,
    }
