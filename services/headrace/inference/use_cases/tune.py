"""Finds a deployment's best setting by measuring copies of its version."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from headrace.errors import FailedPrecondition, HeadraceError, Unavailable, one_line
from headrace.inference.domain.deployments import Deployment, ServedVersion, row_values
from headrace.inference.domain.load_windows import MOST_WINDOWS, Window, at_rest, measured
from headrace.inference.domain.serving import Serving, largest_batch
from headrace.inference.domain.tuning import Goal, Measurement, Proposal, Search, Space, Trial
from headrace.inference.use_cases.deployments import FAR_FUTURE, LAST_ID, Deployments
from headrace.inference.use_cases.ports import LoadError, LoggedPrediction, UnitOfWork
from headrace.inference.use_cases.tuning_ports import Copies, Load, LoadGenerator, TuningLock

logger = logging.getLogger(__name__)

# So many logged requests say what is usual.
LOGGED: Final = 200
# The machine is watched for so long before anything is measured.
WATCH_SECONDS: Final = 1.0
# A second, of others than the copy: a health check now and then is not traffic.
LIVE_RATE: Final = 1.0
LARGEST_BATCH_TRIED: Final = 256
# A search has some fifty trials of three to six windows, and a model is loaded for most.
WINDOW_SHARE: Final = 1 / 300
SHORTEST_WINDOW, LONGEST_WINDOW = 0.25, 1.0
# Between looks for copies that a process left that died.
STALE_SECONDS: Final = 60.0
# Of a window, thrown away after a load: first requests are slow.
WARM_UP: Final = 0.5


@dataclass(frozen=True, slots=True)
class TuningWish:
    """What is asked for. `most_instances`: 0 for as many as there are cores, within reason."""

    deployment: str
    goal: Goal
    max_time: timedelta
    most_instances: int = 0
    beside_traffic: bool = False
    apply: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    """Which version is measured, with which requests, and how it is served now."""

    version: int
    current: Serving
    requests: str
    rows: int


@dataclass(frozen=True, slots=True)
class Tuned:
    """The end: what is proposed, whether the search was over, and whether the deployment was changed so."""

    proposal: Proposal
    complete: bool
    applied: bool


class TuneDeployment:
    """One runs at a time."""

    def __init__(
        self,
        work: UnitOfWork,
        deployments: Deployments,
        copies: Copies,
        generator: LoadGenerator,
        lock: TuningLock,
        *,
        cores: int,
        watch_seconds: float = WATCH_SECONDS,
    ) -> None:
        """`cores`: most instances where nobody says; `watch_seconds`: for traffic, before all else."""
        self._work = work
        self._deployments = deployments
        self._copies = copies
        self._generator = generator
        self._lock = lock
        self._cores = cores
        self._watch_seconds = watch_seconds

    async def __call__(self, wish: TuningWish) -> AsyncGenerator[Started | Measurement | Tuned, None]:
        """What it begins with, each measurement, and last what is proposed.

        Raises NotFound; FailedPrecondition with NOTHING_TO_TUNE, TUNING_IN_PROGRESS, LIVE_TRAFFIC or
        MODEL_FAILS; Unavailable. However it ends, the copy is removed.
        """
        deployment, version, logged = await self._subject(wish.deployment)
        sample = self._copies.sample(deployment.name, version, logged)
        async with self._lock.take() as taken:
            if not taken:
                raise FailedPrecondition(
                    "TUNING_IN_PROGRESS", "a deployment is being tuned already; try again when that is over"
                )
            traffic = _Traffic(self._copies, allowed=wish.beside_traffic)
            await traffic.watch(self._watch_seconds)
            try:
                yield Started(version.version, deployment.serving, sample.source, sample.rows)
                search = Search(wish.goal, self._space(wish, version, sample.rows), deployment.serving)
                complete = False
                async with self._generator.sending(sample.message) as load:
                    bench = _Bench(self._copies, load, deployment.name, version, wish)
                    trials = search.trials()
                    trial = next(trials)
                    while bench.has_time:
                        measurement = await bench.measure(trial)
                        await traffic.check()
                        yield measurement
                        try:
                            trial = trials.send(measurement)
                        except StopIteration:
                            complete = True
                            break
            finally:
                await self._remove_copies()
        proposal = search.proposal()
        assert proposal is not None
        applied = wish.apply and proposal.keeps_target and proposal.changes
        if applied:
            await self._deployments.serve(deployment.name, proposal.measurement.serving)
        yield Tuned(proposal, complete, applied)

    async def _subject(self, name: str) -> tuple[Deployment, ServedVersion, list[LoggedPrediction]]:
        async with self._work() as work:
            deployment = await work.rows.deployment(name)
            versions = await work.rows.served_versions(deployment.model)
            logged = await work.rows.predictions(name, FAR_FUTURE, LAST_ID, LOGGED)
        answering = max(deployment.traffic, key=lambda number: deployment.traffic[number], default=0)
        for version in versions:
            if version.version == answering:
                return deployment, version, logged
        raise FailedPrecondition(
            "NOTHING_TO_TUNE", f"no version of deployment {name} answers yet; tune it when one does"
        )

    def _space(self, wish: TuningWish, version: ServedVersion, rows: int) -> Space:
        most_batch = min(LARGEST_BATCH_TRIED, largest_batch(row_values(version.inputs)))
        return Space(min(rows, most_batch), most_batch, wish.most_instances or self._cores)

    async def _remove_copies(self) -> None:
        # Also when whoever asked has hung up.
        removal = asyncio.ensure_future(self._copies.remove_all())
        try:
            await asyncio.shield(removal)
        except HeadraceError as error:
            logger.warning("copies are left, and removed later: %s", error)


class _Traffic:
    """What the machine answers beside the copy."""

    def __init__(self, copies: Copies, *, allowed: bool) -> None:
        self._copies = copies
        self._allowed = allowed
        self._count = 0
        self._time = 0.0

    async def watch(self, seconds: float) -> None:
        """Look for so long. Raises FailedPrecondition/LIVE_TRAFFIC."""
        if not self._allowed:
            self._count, self._time = await self._copies.live_requests(), _now()
            await asyncio.sleep(seconds)
            await self.check()

    async def check(self) -> None:
        """What came since the last look. Raises FailedPrecondition/LIVE_TRAFFIC."""
        if self._allowed:
            return
        count, now = await self._copies.live_requests(), _now()
        rate = (count - self._count) / (now - self._time)
        self._count, self._time = count, now
        if rate > LIVE_RATE:
            raise FailedPrecondition(
                "LIVE_TRAFFIC",
                f"Triton's machine answers {rate:.0f} requests/s, which tuning would slow, and which would "
                "falsify it; tune when it is quiet, on a machine of its own "
                "(HEADRACE_INFERENCE_TUNING_TRITON_GRPC), or beside the traffic if that may suffer "
                "(--beside-traffic)",
            )


class _Bench:
    """Carries out trials."""

    def __init__(
        self, copies: Copies, load: Load, deployment: str, version: ServedVersion, wish: TuningWish
    ) -> None:
        self._copies = copies
        self._load = load
        self._deployment = deployment
        self._version = version
        self._goal = wish.goal
        self._until = _now() + wish.max_time.total_seconds()
        share = wish.max_time.total_seconds() * WINDOW_SHARE
        self._seconds = min(LONGEST_WINDOW, max(SHORTEST_WINDOW, share))
        self._serving: Serving | None = None

    @property
    def has_time(self) -> bool:
        """For another trial; there is always time for the first one."""
        return self._serving is None or _now() < self._until

    async def measure(self, trial: Trial) -> Measurement:
        """Raises FailedPrecondition/MODEL_FAILS where the first one gets no answer, Unavailable."""
        is_first = self._serving is None
        try:
            windows = await self._windows(trial)
        except LoadError as error:
            if is_first:
                raise FailedPrecondition("MODEL_FAILS", f"the copy does not load: {error}") from error
            logger.info("%s does not load: %s", trial.serving.text(), error)
            windows = [Window((), 1, self._seconds)]
        measurement = measured(trial, windows, self._goal.share)
        if is_first and not measurement.answered:
            raise FailedPrecondition(
                "MODEL_FAILS", "the copy answers no request; `headrace logs triton` says more"
            )
        return measurement

    async def _windows(self, trial: Trial) -> list[Window]:
        rate = 0.0 if trial.in_flight else self._goal.rate
        if trial.serving != self._serving:
            self._serving = trial.serving
            await self._copies.put(self._deployment, self._version, trial.serving)
            await self._load.window(in_flight=trial.in_flight or 1, rate=0.0, seconds=WARM_UP * self._seconds)
        windows: list[Window] = []
        while len(windows) < MOST_WINDOWS and not at_rest(windows, self._goal.share):
            if windows and _now() >= self._until:
                break
            windows.append(
                await self._load.window(in_flight=trial.in_flight, rate=rate, seconds=self._seconds)
            )
            if not windows[-1].seconds:
                break
        return windows


class StaleCopies:
    """What a process left that died while it tuned. Every instance looks for them."""

    def __init__(self, copies: Copies, lock: TuningLock) -> None:
        self._copies = copies
        self._lock = lock

    async def run(self) -> None:
        """Remove them until cancelled."""
        while True:
            try:
                await self.remove()
            except Unavailable:
                # The reconciler says that Triton is away.
                pass
            except Exception as error:
                logger.warning("copies of a tuning could not be removed, trying again: %s", one_line(error))
            await asyncio.sleep(STALE_SECONDS)

    async def remove(self) -> None:
        """Where nobody tunes, there are no copies. Raises Unavailable."""
        async with self._lock.take() as taken:
            if taken:
                await self._copies.remove_all()


def _now() -> float:
    return asyncio.get_running_loop().time()
