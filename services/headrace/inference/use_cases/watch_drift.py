"""Watching deployments for drift: a window at a time, and an alert for each episode."""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from headrace.errors import HeadraceError, one_line
from headrace.inference.domain.deployments import Deployment, ServedVersion
from headrace.inference.domain.drift import DriftRules, judge
from headrace.inference.domain.drift_watch import EndReason, Episode, Watch, WindowResult, watched
from headrace.inference.use_cases import metrics
from headrace.inference.use_cases.drift_ports import DriftStore, Profiles
from headrace.inference.use_cases.drift_windows import window_of
from headrace.inference.use_cases.ports import UnitOfWork
from headrace.runtime.clock import Clock

logger = logging.getLogger(__name__)

PASS_SECONDS: Final = 2.0
EPISODES_TOLD: Final = 10
UNKNOWN_DATASET: Final = "it is not known what this version was trained on"


class DriftState(enum.StrEnum):
    """How a deployment's version stands."""

    WAITING = "WAITING"
    CALM = "CALM"
    SUSPECT = "SUSPECT"
    DRIFTING = "DRIFTING"


@dataclass(frozen=True, slots=True)
class DriftReport:
    """How a deployment's version stands, with the window that it is known by."""

    deployment: str
    version: int
    dataset: str
    dataset_version: int
    state: DriftState
    message: str
    rules: DriftRules
    window: WindowResult | None
    episodes: Sequence[Episode]


class WatchDrift:
    """Judges every deployment's version; one instance of the service does it at a time.

    Nothing is kept between passes: a window that was judged and not stored is judged again.
    """

    def __init__(
        self,
        work: UnitOfWork,
        store: DriftStore,
        profiles: Profiles,
        clock: Clock,
        new_id: Callable[[], str],
    ) -> None:
        self._work = work
        self._store = store
        self._profiles = profiles
        self._clock = clock
        self._new_id = new_id

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                await self.look()
            except Exception as error:
                logger.warning("drift could not be looked at, trying again: %s", one_line(error))
            await asyncio.sleep(PASS_SECONDS)

    async def look(self) -> None:
        """Judge every window that is full."""
        async with self._work() as work:
            deployments = await work.rows.all_deployments()
            served = await work.rows.all_served_versions()
        watches = await self._store.watches()
        living = {deployment.name for deployment in deployments if not deployment.deleted}
        for name in watches.keys() - living:
            watch = watches[name]
            await self._store.forget(watch, await self._ended(watch, EndReason.REPLACED))
        for deployment in deployments:
            versions = {version.version: version for version in served.get(deployment.model, [])}
            version = versions.get(deployment.stable)
            if version is None or deployment.deleted:
                continue
            try:
                await self._watch(deployment, version, watches.get(deployment.name))
            except Exception as error:
                # Of one deployment, which must not keep the others from being watched.
                logger.warning("deployment %s could not be judged: %s", deployment.name, one_line(error))

    async def _watch(self, deployment: Deployment, version: ServedVersion, watch: Watch | None) -> None:
        rules, now = deployment.drift, self._clock()
        if watch is None or watch.version != version.version:
            begun = Watch(deployment.name, version.version, now, revision=watch.revision if watch else 0)
            ended = await self._ended(watch, EndReason.REPLACED) if watch else None
            await self._store.save(begun, None, ended)
            return
        if now - watch.since < rules.every:
            return
        name, since = deployment.name, watch.since
        if await self._store.request_count(name, version.version, since, rules.requests) < rules.requests:
            return
        result = await self._judged(rules, name, version, watch)
        if result is None:
            return
        after = watched(watch, rules, result, self._new_id)
        changed: Episode | None = None
        if after.episode and not watch.episode:
            changed = Episode(
                id=after.episode,
                deployment=name,
                model=version.model,
                version=version.version,
                dataset=version.dataset,
                dataset_version=version.dataset_version,
                columns=result.drifting,
                begin_time=now,
            )
        elif watch.episode and not after.episode:
            changed = await self._ended(watch, EndReason.RECOVERED)
        if not await self._store.save(after, result, changed):
            return
        if result.findings:
            metrics.DRIFT_WINDOWS.labels("drifting" if result.drifting else "calm").inc()
        if changed is not None:
            began = changed.end_time is None
            metrics.DRIFT_EPISODES.labels("begun" if began else "ended").inc()
            what = f"drifts in {', '.join(changed.columns)}" if began else "no longer drifts"
            logger.warning("deployment %s: version %d %s", name, version.version, what)

    async def _judged(
        self, rules: DriftRules, name: str, version: ServedVersion, watch: Watch
    ) -> WindowResult | None:
        """The window that is full, judged; None where there is nothing to judge it by, which is noted."""
        if not version.dataset_version:
            await self._note(watch, UNKNOWN_DATASET)
            return None
        try:
            reference = await self._profiles.reference(version)
        except HeadraceError as error:
            await self._note(
                watch,
                f"the profile of {version.dataset} version {version.dataset_version} is not to be had: "
                f"{error.message}",
            )
            return None
        requests = await self._store.newest_requests(name, version.version, watch.since, rules.requests)
        if not requests:
            # Erased since they were counted.
            return None

        def judged() -> WindowResult:
            window = window_of(requests, version)
            return WindowResult(
                version=version.version,
                begin=requests[-1].time,
                end=requests[0].time,
                requests=len(requests),
                rows=window.rows,
                findings=judge(rules, reference, window),
            )

        # Some milliseconds of arithmetic for each hundred columns, during which everything else goes on.
        return await asyncio.to_thread(judged)

    async def _note(self, watch: Watch, message: str) -> None:
        if message != watch.message:
            await self._store.save(replace(watch, message=message), None, None)

    async def _ended(self, watch: Watch, reason: EndReason) -> Episode | None:
        """The watch's episode as it ends now."""
        if not watch.episode:
            return None
        episode = await self._store.episode(watch.episode)
        return replace(episode, end_time=self._clock(), end_reason=reason)


class ReportDrift:
    """Says how a deployment stands."""

    def __init__(self, work: UnitOfWork, store: DriftStore) -> None:
        self._work = work
        self._store = store

    async def __call__(self, name: str) -> DriftReport:
        """How the deployment's version stands. Raises NotFound/DEPLOYMENT_NOT_FOUND."""
        async with self._work() as work:
            deployment = await work.rows.deployment(name)
            served = await work.rows.served_versions(deployment.model)
        version = next((one for one in served if one.version == deployment.stable), None)
        watch = await self._store.watch(name)
        current = watch if watch and version and watch.version == version.version else None
        window = await self._store.last_window(name, current.version) if current else None
        state, message = DriftState.WAITING, "no version answers yet"
        if version is not None:
            state, message = await self._standing(deployment.drift, version, current, window)
        return DriftReport(
            deployment=name,
            version=version.version if version else 0,
            dataset=version.dataset if version else "",
            dataset_version=version.dataset_version if version else 0,
            state=state,
            message=message,
            rules=deployment.drift,
            window=window,
            episodes=await self._store.episodes(name, EPISODES_TOLD),
        )

    async def _standing(
        self, rules: DriftRules, version: ServedVersion, watch: Watch | None, window: WindowResult | None
    ) -> tuple[DriftState, str]:
        if watch is None:
            return DriftState.WAITING, f"version {version.version} has just begun to answer"
        if watch.episode:
            return DriftState.DRIFTING, watch.message
        # Neither is counted while nothing could be compared.
        if window is not None and (watch.drifting or watch.calm):
            return DriftState.SUSPECT if watch.drifting else DriftState.CALM, watch.message
        count = await self._store.request_count(
            watch.deployment, version.version, watch.since, rules.requests
        )
        waiting = f"{count} of the {rules.requests} requests of a window have come"
        return DriftState.WAITING, watch.message or waiting
