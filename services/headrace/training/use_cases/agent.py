"""The node agent: makes what runs here what is desired here."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import timedelta

from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.errors import HeadraceError
from headrace.runtime.clock import Clock
from headrace.runtime.faults import fault_point
from headrace.training.domain.runs import Run, RunState, failed, run_id, stopped
from headrace.training.run.messages import Message, Progressed, Started
from headrace.training.run.report import Report
from headrace.training.use_cases.ports import Executor, Registrar, Runs

logger = logging.getLogger(__name__)

# How often progress is stored and told as an event; reports carry every change.
PROGRESS_SECONDS = 1.0


class Active:
    """A run that this process carries."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.unwanted = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Agent:
    """Starts, follows, registers and stops runs.

    What it knew before a restart it finds in the table: ended runs stay reported, and runs that were
    under way died with the process (the kernel saw to that) and start again from their checkpoint if
    they are still desired. One that was being registered has its results in its folder, and is
    registered without being trained again.
    """

    def __init__(self, node: str, runs: Runs, executor: Executor, registrar: Registrar, clock: Clock) -> None:
        self._node = node
        self._runs = runs
        self._executor = executor
        self._registrar = registrar
        self._clock = clock
        self._active: dict[str, Active] = {}
        self._known: dict[str, Run] = {}
        self._orphans: dict[str, Run] = {}
        self._desired: set[str] | None = None
        self.changed = asyncio.Event()

    async def recover(self) -> None:
        """Read what an earlier process of this node left."""
        for run in await self._runs.recent(self._node):
            if run.state.ended:
                self._known[run.id] = run
            else:
                self._orphans[run.id] = run

    def report(self) -> list[Run]:
        """Runs to report: those under way, and ended ones as long as they are desired."""
        ended = [
            run
            for name, run in self._known.items()
            if name not in self._active and (self._desired is None or name in self._desired)
        ]
        return [active.run for active in self._active.values()] + ended

    async def desire(self, tasks: Sequence[scheduling_pb2.Task]) -> None:
        """Make the desired set run, and nothing else."""
        wanted = {run_id(task.job, task.attempt): task for task in tasks}
        self._desired = set(wanted)
        for name, active in self._active.items():
            if name not in wanted:
                active.unwanted.set()
        orphans, self._orphans = self._orphans, {}
        for name, run in orphans.items():
            if name not in wanted:
                await self._save(stopped(run, "its node's agent was restarted", self._clock()))
        for name, task in wanted.items():
            if name not in self._active and name not in self._known:
                self._start(name, task, orphans.get(name))

    async def close(self) -> None:
        """Stop every run; each saves a checkpoint first. Their rows stay open: they go on after a restart."""
        tasks = [active.task for active in self._active.values() if active.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, name: str, task: scheduling_pb2.Task, orphan: Run | None) -> None:
        if orphan is not None and self._has_results(orphan):
            self._carry_on(name, orphan, lambda active: self._register(active, task))
            return
        run = Run(
            id=name,
            job=task.job,
            attempt=task.attempt,
            pipeline=task.pipeline,
            node=self._node,
            traceparent=task.traceparent,
            start_time=self._clock(),
        )
        self._carry_on(name, run, lambda active: self._carry(active, task))

    def _has_results(self, run: Run) -> bool:
        """Whether all that an earlier process left to do is to register: the report is written last."""
        return run.state is RunState.REGISTERING and Report.exists(self._executor.folder(run.id))

    def _carry_on(self, name: str, run: Run, carry: Callable[[Active], Coroutine[None, None, None]]) -> None:
        active = Active(run)
        self._active[name] = active
        active.task = asyncio.create_task(carry(active), name=f"run {name}")
        active.task.add_done_callback(lambda done: self._dropped(name, done))
        self.changed.set()

    def _dropped(self, name: str, task: asyncio.Task[None]) -> None:
        self._active.pop(name, None)
        if not task.cancelled() and task.exception() is not None:
            # Its row stays open: still desired, it starts again with the next report.
            logger.error("run %s broke its agent", name, exc_info=task.exception())
        self.changed.set()

    async def _carry(self, active: Active, task: scheduling_pb2.Task) -> None:
        """A run from its start to its end."""
        await self._update(active, active.run)
        told = 0.0

        async def listen(message: Message) -> None:
            nonlocal told
            run = _heard(active.run, message)
            now = asyncio.get_running_loop().time()
            last = isinstance(message, Progressed) and message.epoch == message.epochs
            if isinstance(message, Started) or last or now - told >= PROGRESS_SECONDS:
                told = now
                await self._update(active, run)
            else:
                active.run = run
            self.changed.set()
            if isinstance(message, Started):
                fault_point("training.after-run-start")

        ending = await self._executor.execute(task, active.run, listen, active.unwanted.wait())
        if active.unwanted.is_set():
            await self._update(active, stopped(active.run, "no longer desired", self._clock()))
        elif ending.code != 0:
            await self._update(active, failed(active.run, ending.reason, ending.message, self._clock()))
        else:
            await self._register(active, task)

    async def _register(self, active: Active, task: scheduling_pb2.Task) -> None:
        folder = self._executor.folder(active.run.id)
        metrics = {name: value for name, value in Report.read(folder).metrics.items() if math.isfinite(value)}
        await self._update(active, replace(active.run, state=RunState.REGISTERING, metrics=metrics))
        try:
            version, message = await self._registrar.register(task, active.run, folder)
        except HeadraceError as error:
            await self._update(
                active, failed(active.run, error.reason, f"registering failed: {error}", self._clock())
            )
            return
        fault_point("training.after-register")
        await self._update(
            active,
            replace(
                active.run,
                state=RunState.SUCCEEDED,
                message=message,
                model_version=version,
                remaining=timedelta(0),
                end_time=self._clock(),
            ),
        )

    async def _update(self, active: Active, run: Run) -> None:
        active.run = run
        await self._save(run)

    async def _save(self, run: Run) -> None:
        await self._runs.put(run)
        if run.state.ended:
            self._known[run.id] = run
            logger.info("run %s: %s %s", run.id, run.state, run.message.split("\n", 1)[0])
        self.changed.set()


def _heard(run: Run, message: Message) -> Run:
    if isinstance(message, Started):
        return replace(
            run,
            state=RunState.RUNNING,
            epochs=message.epochs,
            epoch=message.resumed_epoch,
            resumed_epoch=message.resumed_epoch,
        )
    if isinstance(message, Progressed):
        return replace(
            run,
            epoch=message.epoch,
            epochs=message.epochs,
            loss=message.loss,
            remaining=timedelta(seconds=message.remaining_seconds),
        )
    return run
