"""The node agent: what it makes of desired sets, cancellations at any moment, and parts that are away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support.reports import a_report
from tests.support.waiting import eventually

from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.training.domain.runs import Run, RunState
from headrace.training.run.messages import Message, Progressed, Started
from headrace.training.run.report import REPORT_FILE
from headrace.training.use_cases import agent as agents
from headrace.training.use_cases.agent import TOLD, Agent
from headrace.training.use_cases.ports import Ending, Listener

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TASK = scheduling_pb2.Task(job="job", attempt=1, pipeline="p")


class Table:
    """Runs in memory; `broken` is what storing one raises."""

    def __init__(self) -> None:
        self.rows: dict[str, Run] = {}
        self.broken: Exception | None = None
        self.refused = 0

    async def put(self, run: Run) -> None:
        await asyncio.sleep(0)
        if self.broken is not None:
            self.refused += 1
            raise self.broken
        self.rows[run.id] = run

    async def recent(self, node: str, limit: int = 200) -> list[Run]:
        return list(self.rows.values())


class Process:
    """Runs that say and end as a test wants."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.started = 0
        self.listen: Listener | None = None
        self.ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.discarded: list[str] = []

    def folder(self, run_id: str) -> Path:
        return self.root / run_id

    async def execute(
        self, task: scheduling_pb2.Task, run: Run, listen: Listener, stop: Awaitable[object]
    ) -> Ending:
        self.started += 1
        self.listen = listen
        self.folder(run.id).mkdir(exist_ok=True)
        ends: list[asyncio.Future[Any]] = [self.ended, asyncio.ensure_future(stop)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        return self.ended.result() if self.ended.done() else Ending(1)

    async def discard_checkpoints(self, job: str) -> None:
        self.discarded.append(job)

    async def say(self, message: Message) -> None:
        assert self.listen is not None
        await self.listen(message)

    def finish(self, run_id: str = "job-1") -> None:
        a_report().write(self.folder(run_id))
        self.ended.set_result(Ending(0))


class Registry:
    """A registry that answers when a test says so."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self.asked = asyncio.Event()
        self.cancelled = False

    async def register(self, task: scheduling_pb2.Task, run: Run, folder: Path) -> tuple[int, str]:
        self.asked.set()
        try:
            return await asyncio.shield(self.answer)
        except asyncio.CancelledError:
            self.cancelled = True
            raise


class World:
    def __init__(self, folder: Path) -> None:
        self.now = NOW
        self.table = Table()
        self.process = Process(folder)
        self.registry = Registry()
        self.agent = self.another_agent()

    def another_agent(self) -> Agent:
        return Agent("node", self.table, self.process, self.registry, lambda: self.now)

    async def until(self, state: RunState, attempt: int = 1) -> Run:
        """Wait until the agent reports the run in a state."""

        async def ask() -> Run | None:
            return next((run for run in self.agent.report() if run.attempt == attempt), None)

        run = await eventually(ask, lambda run: run is not None and run.state is state, 5)
        assert run is not None
        return run

    async def until_stored(self, condition: Callable[[Run | None], bool]) -> None:
        async def ask() -> Run | None:
            return self.table.rows.get("job-1")

        await eventually(ask, condition, 5)

    async def until_started(self) -> None:
        async def ask() -> bool:
            return self.process.listen is not None

        await eventually(ask, bool, 5)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(agents, "STORE_AGAIN_SECONDS", 0.01)
    return World(tmp_path)


async def test_a_run_that_succeeds_leaves_no_checkpoints(world: World) -> None:
    await world.agent.desire([TASK])
    await world.until_started()
    world.process.finish()
    world.registry.answer.set_result((3, "version 3 is promoted"))
    run = await world.until(RunState.SUCCEEDED)
    assert (run.model_version, run.metrics) == (3, {"test/accuracy": 1.0})

    async def ask() -> list[str]:
        return world.process.discarded

    await eventually(ask, lambda jobs: jobs == ["job"], 5)


async def test_what_is_cancelled_while_it_is_registered_is_stopped(world: World) -> None:
    await world.agent.desire([TASK])
    await world.until_started()
    world.process.finish()
    await world.registry.asked.wait()
    await world.agent.desire([])
    assert (await world.until(RunState.STOPPED)).message == "no longer desired"
    assert world.registry.cancelled
    assert world.process.discarded == []


async def test_what_an_earlier_process_left_to_register_can_be_cancelled_too(world: World) -> None:
    await world.agent.desire([TASK])
    await world.until_started()
    world.process.finish()
    await world.registry.asked.wait()
    await world.agent.close()
    assert world.table.rows["job-1"].state is RunState.REGISTERING

    world.registry.asked.clear()
    world.agent = world.another_agent()
    await world.agent.recover()
    await world.agent.desire([TASK])
    await world.registry.asked.wait()
    await world.agent.desire([])
    await world.until(RunState.STOPPED)
    assert world.process.started == 1


async def test_what_was_registered_while_it_was_cancelled_is_told_and_then_forgotten(world: World) -> None:
    await world.agent.desire([TASK])
    await world.until_started()
    world.process.finish()
    await world.registry.asked.wait()
    world.registry.answer.set_result((1, "version 1 is promoted"))
    await world.agent.desire([])
    await world.until(RunState.SUCCEEDED)
    await world.agent.desire([])
    assert [run.state for run in world.agent.report()] == [RunState.SUCCEEDED]

    world.now += TOLD
    await world.agent.desire([TASK])
    assert [run.state for run in world.agent.report()] == [RunState.SUCCEEDED]
    await world.agent.desire([])
    assert world.agent.report() == []


@pytest.mark.parametrize("broken", [ConnectionError("refused"), ValueError("no such column")])
async def test_progress_that_cannot_be_stored_ends_no_run(world: World, broken: Exception) -> None:
    await world.agent.desire([TASK])
    await world.until_started()
    world.table.broken = broken
    await world.process.say(Started(epochs=10, resumed_epoch=0))
    await world.process.say(Progressed(epoch=10, epochs=10, loss=0.5, remaining_seconds=0))
    assert world.table.refused == 2
    run = await world.until(RunState.RUNNING)
    assert run.epoch == 10
    world.table.broken = None
    world.process.finish()
    world.registry.answer.set_result((1, ""))
    await world.until(RunState.SUCCEEDED)


async def test_a_change_of_state_is_stored_when_the_database_is_back(world: World) -> None:
    world.table.broken = ConnectionError("refused")
    await world.agent.desire([TASK])

    async def ask() -> int:
        return world.table.refused

    await eventually(ask, lambda refused: refused >= 2, 5)
    assert world.process.started == 0
    world.table.broken = None
    await world.until_started()
    world.table.broken, world.table.refused = TimeoutError(), 0
    world.process.ended.set_result(Ending(1, "RUN_FAILED", "exit code 1"))
    await eventually(ask, lambda refused: refused >= 2, 5)
    world.table.broken = None
    await world.until_stored(lambda run: run is not None and run.state is RunState.FAILED)


async def test_an_orphan_is_stopped_when_the_database_is_back(world: World) -> None:
    orphan = Run("job-1", "job", 1, "p", "node", "", NOW, state=RunState.RUNNING)
    world.table.rows["job-1"] = orphan
    await world.agent.recover()
    world.table.broken = ConnectionError("refused")
    await world.agent.desire([])
    assert world.table.rows["job-1"] == orphan
    world.table.broken = None
    await world.agent.desire([])
    assert world.table.rows["job-1"].state is RunState.STOPPED


async def test_a_run_that_the_agent_cannot_start_has_failed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def execute(*arguments: object) -> Ending:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(world.process, "execute", execute)
    await world.agent.desire([TASK])
    run = await world.until(RunState.FAILED)
    assert run.reason == "AGENT_FAILED"
    assert "No space left on device" in run.message
    await world.until_stored(lambda run: run is not None and run.state is RunState.FAILED)


async def test_a_run_that_cannot_be_stored_at_all_is_not_begun_again(world: World) -> None:
    world.table.broken = ValueError("no such column")
    await world.agent.desire([TASK])
    assert (await world.until(RunState.FAILED)).reason == "AGENT_FAILED"
    refused = world.table.refused
    await world.agent.desire([TASK])
    assert world.table.refused == refused
    assert world.process.started == 0


async def test_results_that_cannot_be_read_are_a_failure(world: World) -> None:
    await world.agent.desire([TASK])
    await world.until_started()
    (world.process.folder("job-1") / REPORT_FILE).write_text("{}")
    world.process.ended.set_result(Ending(0))
    assert (await world.until(RunState.FAILED)).reason == "AGENT_FAILED"


async def test_old_ends_are_told_once_after_a_restart(world: World) -> None:
    ended = Run("job-1", "job", 1, "p", "node", "", NOW, state=RunState.FAILED, end_time=NOW)
    world.table.rows["job-1"] = ended
    world.table.rows["job-2"] = replace(ended, id="job-2", attempt=2)
    world.now += timedelta(days=1)
    await world.agent.recover()
    assert len(world.agent.report()) == 2
    await world.agent.desire([TASK])
    assert [run.id for run in world.agent.report()] == ["job-1"]
