"""The node agent: makes what runs here what is desired here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.errors import HeadraceError
from headrace.runtime.clock import Clock
from headrace.runtime.faults import fault_point
from headrace.runtime.outage import is_outage
from headrace.training.domain.runs import Run, RunState, failed, run_id, stopped
from headrace.training.run.messages import Message, Progressed, Started
from headrace.training.run.report import Report
from headrace.training.use_cases.ports import Executor, Registrar, Runs

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How often progress is stored and told as an event; reports carry every change.
PROGRESS_SECONDS = 1.0
# How long an ended run that nobody wants is told of: a report may be lost with its stream, and a job whose
# results were registered while it was being cancelled has succeeded.
TOLD = timedelta(minutes=1)
# How soon a change of state that could not be stored is stored again.
STORE_AGAIN_SECONDS = 1.0


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
        self.changed = asyncio.Event()

    async def recover(self) -> None:
        """Read what an earlier process of this node left."""
        for run in await self._runs.recent(self._node):
            if run.state.ended:
                self._known[run.id] = run
            else:
                self._orphans[run.id] = run

    def report(self) -> list[Run]:
        """Runs to report: those under way, and ended ones as long as they are desired and a while longer."""
        ended = [run for name, run in self._known.items() if name not in self._active]
        return [active.run for active in self._active.values()] + ended

    async def desire(self, tasks: Sequence[scheduling_pb2.Task]) -> None:
        """Make the desired set run, and nothing else."""
        wanted = {run_id(task.job, task.attempt): task for task in tasks}
        self._forget(wanted)
        for name, active in self._active.items():
            if name not in wanted:
                active.unwanted.set()
        for name, run in list(self._orphans.items()):
            if name not in wanted and not await self._try_to_save(
                stopped(run, "its node's agent was restarted", self._clock())
            ):
                # With the next desired set, which comes soon.
                continue
            del self._orphans[name]
            if name in wanted:
                self._start(name, wanted[name], run)
        for name, task in wanted.items():
            if name not in self._active and name not in self._known:
                self._start(name, task, None)

    async def close(self) -> None:
        """Stop every run; each saves a checkpoint first. Their rows stay open: they go on after a restart."""
        tasks = [active.task for active in self._active.values() if active.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, wanted: Collection[str]) -> None:
        """Keep of the ended runs what is still told."""
        now = self._clock()
        self._known = {
            name: run
            for name, run in self._known.items()
            if name in wanted or run.end_time is None or now - run.end_time < TOLD
        }

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
        active.task = asyncio.create_task(self._to_an_end(active, carry), name=f"run {name}")
        active.task.add_done_callback(lambda done: self._dropped(name, done))
        self.changed.set()

    async def _to_an_end(
        self, active: Active, carry: Callable[[Active], Coroutine[None, None, None]]
    ) -> None:
        """Carry a run; what goes wrong here, a full disk say, is its end: it must not begin for ever."""
        try:
            await carry(active)
        except Exception as error:
            logger.exception("run %s could not be carried out", active.run.id)
            why = f"the agent could not carry the run out: {type(error).__name__}: {error}"
            ended = failed(active.run, "AGENT_FAILED", why, self._clock())
            # Known at once, should it be storing what goes wrong.
            self._known[ended.id] = ended
            await self._update(active, ended)

    def _dropped(self, name: str, task: asyncio.Task[None]) -> None:
        self._active.pop(name, None)
        if not task.cancelled() and task.exception() is not None:
            logger.error("run %s broke its agent", name, exc_info=task.exception())
        self.changed.set()

    async def _carry(self, active: Active, task: scheduling_pb2.Task) -> None:
        """A run from its start to its end."""
        await self._update(active, active.run)
        told = 0.0

        async def listen(message: Message) -> None:
            nonlocal told
            run = active.run = _heard(active.run, message)
            now = asyncio.get_running_loop().time()
            last = isinstance(message, Progressed) and message.epoch == message.epochs
            if isinstance(message, Started) or last or now - told >= PROGRESS_SECONDS:
                told = now
                # Progress that cannot be stored is no reason to end the run: soon there is newer.
                await self._try_to_save(run)
            self.changed.set()
            if isinstance(message, Started):
                fault_point("training.after-run-start")

        stop = asyncio.create_task(active.unwanted.wait())
        try:
            ending = await self._executor.execute(task, active.run, listen, stop)
        finally:
            stop.cancel()
        if active.unwanted.is_set():
            await self._update(active, self._unwanted(active.run))
        elif ending.code != 0:
            await self._update(active, failed(active.run, ending.reason, ending.message, self._clock()))
        else:
            await self._register(active, task)

    async def _register(self, active: Active, task: scheduling_pb2.Task) -> None:
        folder = self._executor.folder(active.run.id)
        metrics = Report.read(folder).metrics
        await self._update(active, replace(active.run, state=RunState.REGISTERING, metrics=metrics))
        try:
            registered = await _unless(active.unwanted, self._registrar.register(task, active.run, folder))
        except HeadraceError as error:
            await self._update(
                active, failed(active.run, error.reason, f"registering failed: {error}", self._clock())
            )
            return
        if registered is None:
            await self._update(active, self._unwanted(active.run))
            return
        version, message = registered
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
        try:
            await self._executor.discard_checkpoints(active.run.job)
        except Exception:
            logger.exception("the checkpoints of job %s stay where they are", active.run.job)

    def _unwanted(self, run: Run) -> Run:
        return stopped(run, "no longer desired", self._clock())

    async def _update(self, active: Active, run: Run) -> None:
        """Move a run on, and store that as soon as the database answers."""
        active.run = run
        while True:
            try:
                return await self._save(run)
            except Exception as error:
                if not is_outage(error):
                    raise
                logger.warning("run %s: %s is not stored yet: %r", run.id, run.state, error)
            await asyncio.sleep(STORE_AGAIN_SECONDS)

    async def _try_to_save(self, run: Run) -> bool:
        """Whether the run is stored; where that fails, something newer is stored soon."""
        try:
            await self._save(run)
        except Exception as error:
            logger.warning("run %s: %s is not stored: %r", run.id, run.state, error)
            return False
        return True

    async def _save(self, run: Run) -> None:
        await self._runs.put(run)
        if run.state.ended:
            self._known[run.id] = run
            logger.info("run %s: %s %s", run.id, run.state, run.message.split("\n", 1)[0])
        self.changed.set()


async def _unless(unwanted: asyncio.Event, work: Coroutine[None, None, T]) -> T | None:
    """What the work gives, or None where it was cancelled because it is no longer wanted."""
    working = asyncio.create_task(work)
    waiting = asyncio.create_task(unwanted.wait())
    try:
        await asyncio.wait([working, waiting], return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        await asyncio.wait([working])
        return None if working.cancelled() else working.result()
    finally:
        for task in (working, waiting):
            task.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)


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
