"""The scaler: how much of each deployment there is, and where, as its load and its bounds say."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

from headrace.errors import NotFound, one_line
from headrace.inference.domain.deployments import Deployment, ServedVersion
from headrace.inference.domain.placement import MIB, Tenant, fits_now, memory_of, place
from headrace.inference.domain.rollouts import wanted_versions
from headrace.inference.domain.scaling import (
    ALL_SERVERS,
    DOWN_SECONDS,
    EVERYWHERE,
    MAX_REPLICAS,
    Sample,
    Scale,
    next_scale,
)
from headrace.inference.use_cases import metrics
from headrace.inference.use_cases.ports import Loaded, ModelServer, UnitOfWork, WorkDone
from headrace.runtime.waking import woken

logger = logging.getLogger(__name__)

PASS_SECONDS = 1.0
# Who was asked within this is not unloaded for another one.
WARM_SECONDS: Final = 5.0


@dataclass
class _Seen:
    """What this instance has seen of a deployment while it led; seconds of its own clock."""

    scale: Scale
    steady_since: float
    asked: float
    samples: deque[Sample] = field(default_factory=deque)


class Scaler:
    """Decides; the reconciler makes it so. One instance of the service runs it at a time."""

    def __init__(
        self,
        work: UnitOfWork,
        server: ModelServer,
        *,
        changed: Callable[[], None],
        memory: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`changed` is called after every change. `memory`: bytes of each server, 0 for any number."""
        self._work = work
        self._server = server
        self._changed = changed
        self._memory = memory
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        # Bytes that a deployment takes for which there was no room in the last pass.
        self._without_room: dict[str, int] = {}
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Something changed: do not wait for the next pass."""
        self._wake.set()

    async def run(self) -> None:
        """Scale until cancelled. What another leader saw is not known: nothing comes down for a while."""
        self._seen.clear()
        while True:
            self._wake.clear()
            try:
                await self.look()
            except Exception as error:
                logger.warning("deployments are left as they are, trying again: %s", one_line(error))
            await woken(self._wake, PASS_SECONDS)

    async def look(self) -> None:
        """Look at every deployment once."""
        async with self._work() as work:
            deployments = [one for one in await work.rows.all_deployments() if not one.deleted]
            versions = await work.rows.all_served_versions()
        for name in self._seen.keys() - {deployment.name for deployment in deployments}:
            del self._seen[name]
        scaled = [one for one in deployments if one.scaling != EVERYWHERE or one.scale != ALL_SERVERS]
        if not scaled:
            return
        done = await self._server.work_done()
        # Where memory does not matter, what is still there does not.
        loaded = await self._server.loaded() if self._memory else {}
        for deployment in deployments:
            self._see(deployment, done)
        tenants = {
            deployment.name: self._tenant(
                deployment, versions.get(deployment.model, []), loaded.get(deployment.name, Loaded())
            )
            for deployment in deployments
        }
        changes: dict[str, Scale] = {}
        self._without_room.clear()
        for deployment in scaled:
            wanted = self._wanted(deployment, len(done.up))
            tenants[deployment.name] = replace(
                tenants[deployment.name],
                memory=_memory(deployment, wanted, versions.get(deployment.model, [])),
            )
            moved = self._place(deployment, wanted, tenants, deployments, done)
            for name, scale in moved.items():
                changes[name] = scale
                tenants[name] = replace(tenants[name], scale=scale)
        for name, scale in changes.items():
            await self._change(name, scale)
        for name, memory in self._without_room.items():
            await self._tell(name, memory)
        for deployment in scaled:
            scale = changes.get(deployment.name, deployment.scale)
            metrics.REPLICAS.labels(deployment.name).set(len(scale.servers(self._server.count)))
        if changes:
            self._changed()

    def _see(self, deployment: Deployment, done: WorkDone) -> None:
        now = self._clock()
        name = deployment.name
        sample = Sample(now, done.requests.get(name, 0), done.queued.get(name, 0.0), done.busy.get(name, 0.0))
        seen = self._seen.get(name)
        if seen is None or seen.scale != deployment.scale:
            # Samples go on: who had the model before does not matter to who waits for it.
            samples = seen.samples if seen else deque[Sample]()
            seen = self._seen[name] = _Seen(deployment.scale, now, seen.asked if seen else now, samples)
        if seen.samples and sample.requests > seen.samples[-1].requests:
            seen.asked = now
        seen.samples.append(sample)
        while len(seen.samples) > 2 and seen.samples[1].time <= now - DOWN_SECONDS:
            seen.samples.popleft()

    def _wanted(self, deployment: Deployment, up: int) -> Scale:
        seen = self._seen[deployment.name]
        # A request waits for it, or a version that is to be loaded.
        rolling = deployment.rollout is not None and not deployment.rollout.state.ended
        demanded = deployment.demanded or rolling
        if demanded:
            seen.asked = self._clock()
        if rolling and deployment.plan.shadow is not None:
            # Envoy does not tell copies for a shadow where it is.
            return replace(deployment.scale, replicas=MAX_REPLICAS)
        return next_scale(
            deployment.scaling,
            deployment.scale,
            base_instances=deployment.serving.instances,
            servers=max(1, up),
            samples=seen.samples,
            steady_since=seen.steady_since,
            asked=seen.asked,
            demanded=demanded,
        )

    def _place(
        self,
        deployment: Deployment,
        wanted: Scale,
        tenants: Mapping[str, Tenant],
        deployments: list[Deployment],
        done: WorkDone,
    ) -> dict[str, Scale]:
        """Scales that change for it: its own, and of those that make room."""
        scale, count = deployment.scale, self._server.count
        stays = (wanted.replicas, wanted.instances) == (scale.replicas, scale.instances)
        is_away = scale.replicas < count and not scale.servers(count) & done.up
        if (stays and not is_away) or wanted.replicas == 0:
            return {} if stays else {deployment.name: wanted}
        if wanted.replicas >= count and not self._memory:
            return {deployment.name: replace(wanted, first=0)}
        others = [tenant for name, tenant in tenants.items() if name != deployment.name]
        found = place(
            wanted,
            tenants[deployment.name],
            others,
            servers=count,
            up=done.up,
            budget=self._memory,
            evictable=self._evictable(deployment.name, deployments),
        )
        if found is None:
            self._without_room[deployment.name] = tenants[deployment.name].memory
            return {}
        if found.evicted:
            # It comes when they have gone: a server is not to hold both.
            return {name: replace(tenants[name].scale, replicas=0) for name in found.evicted}
        chosen, memory = found.scale.servers(count), tenants[deployment.name].memory
        if self._memory and not fits_now(chosen, memory, others, self._memory):
            return {}
        return {deployment.name: found.scale}

    def _evictable(self, wanted: str, deployments: list[Deployment]) -> list[str]:
        """Who may be unloaded to make room: asked longest ago, first."""
        now = self._clock()
        found = [
            deployment.name
            for deployment in deployments
            if deployment.name != wanted
            and deployment.scaling.min_replicas == 0
            and deployment.scale.replicas
            and now - self._seen[deployment.name].asked > WARM_SECONDS
        ]
        return sorted(found, key=lambda name: self._seen[name].asked)

    def _tenant(self, deployment: Deployment, versions: list[ServedVersion], loaded: Loaded) -> Tenant:
        samples = self._seen[deployment.name].samples
        seconds = samples[-1].time - samples[0].time
        return Tenant(
            deployment.name,
            deployment.scale,
            _memory(deployment, deployment.scale, versions),
            (samples[-1].busy - samples[0].busy) / seconds if seconds else 0.0,
            frozenset(number for number, has in enumerate(loaded.servers) if has),
        )

    async def _tell(self, name: str, memory: int) -> None:
        metrics.NO_ROOM.labels(name).inc()
        message = (
            f"no room: it takes about {memory / MIB:,.0f} MiB of a server's {self._memory / MIB:,.0f}, "
            "and nothing that may be unloaded was idle for long enough"
        )
        async with self._work() as work:
            with suppress(NotFound):
                current = await work.rows.deployment(name, lock=True)
                if current.message != message:
                    logger.warning("deployment %s: %s", name, message)
                    await work.rows.save_deployment(replace(current, message=message))

    async def _change(self, name: str, scale: Scale) -> None:
        async with self._work() as work:
            await work.rows.change_scale(name, scale)
        logger.info(
            "deployment %s: to be on %d of %d servers from %d on, %s",
            name,
            len(scale.servers(self._server.count)),
            self._server.count,
            scale.first,
            f"{scale.instances} instances" if scale.instances else "instances as set",
        )


def _memory(deployment: Deployment, scale: Scale, versions: list[ServedVersion]) -> int:
    """Bytes on one server, of all versions that are to be there."""
    wanted = wanted_versions(deployment.traffic, deployment.rollout)
    return memory_of(
        [version for version in versions if version.version in wanted],
        scale.instances or deployment.serving.instances,
    )
