"""Parts start in order, are started again when they end, and stop in reverse; with small real processes."""

from __future__ import annotations

import asyncio
import errno
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from tests.support.waiting import eventually

from headrace.embedded import logs
from headrace.embedded.parts import Part, PartFailed
from headrace.embedded.stack_file import PartState, PartStatus
from headrace.embedded.supervision import Node, Supervisor


class Sleeper(Part):
    """Works until it is stopped."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        super().__init__(folder, folder)

    def command(self) -> list[str]:
        return ["sleep", "600"]


class Fails(Sleeper):
    def command(self) -> list[str]:
        return ["sh", "-c", "echo no disk left; exit 3"]

    async def ready(self) -> bool:
        return False


class Stubborn(Sleeper):
    """Does not stop when it is asked to."""

    stop_seconds = 0.2

    def command(self) -> list[str]:
        return ["sh", "-c", "trap '' TERM; touch deaf; while :; do sleep 600; done"]

    async def ready(self) -> bool:
        return (self.folder / "deaf").exists()


class Talkative(Sleeper):
    """Says the same for ever."""

    def command(self) -> list[str]:
        return ["sh", "-c", "while :; do echo words without end; done"]


class History:
    """Every status that was told."""

    def __init__(self) -> None:
        self.statuses: list[PartStatus] = []

    def __call__(self, status: PartStatus) -> None:
        self.statuses.append(status)

    def order(self, state: PartState) -> list[str]:
        return [status.name for status in self.statuses if status.state is state]

    async def until(self, condition: Callable[[list[PartStatus]], bool]) -> None:
        async def statuses() -> list[PartStatus]:
            return self.statuses

        await eventually(statuses, condition)


@asynccontextmanager
async def supervised(nodes: Sequence[Node], history: History) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(nodes, history)
    try:
        yield supervisor
    finally:
        await supervisor.stop()
    assert [node.part.pid for node in nodes] == [None] * len(nodes)


def times_ready(name: str, times: int) -> Callable[[list[PartStatus]], bool]:
    def condition(statuses: list[PartStatus]) -> bool:
        return sum(s.name == name and s.state is PartState.READY for s in statuses) >= times

    return condition


async def test_parts_start_after_what_they_need_and_stop_before_it(tmp_path: Path) -> None:
    history = History()
    nodes = [
        Node(Sleeper("service", tmp_path), after=("broker", "database")),
        Node(Sleeper("broker", tmp_path)),
        Node(Sleeper("database", tmp_path)),
    ]
    async with supervised(nodes, history) as supervisor:
        await supervisor.start()
        assert history.order(PartState.READY)[-1] == "service"
    assert history.order(PartState.STOPPED)[0] == "service"


async def test_a_part_that_does_not_start_ends_the_start(tmp_path: Path) -> None:
    history = History()
    nodes = [
        Node(Sleeper("database", tmp_path)),
        Node(Fails("broker", tmp_path), after=("database",)),
        Node(Sleeper("service", tmp_path), after=("broker",)),
    ]
    async with supervised(nodes, history) as supervisor:
        with pytest.raises(PartFailed) as raised:
            await supervisor.start()
    assert raised.value.name == "broker"
    assert "no disk left" in raised.value.report()
    assert history.order(PartState.STARTING) == ["database", "broker"]


async def test_a_killed_part_is_started_again_and_the_others_go_on(tmp_path: Path) -> None:
    history = History()
    broker, service = Sleeper("broker", tmp_path), Sleeper("service", tmp_path)
    async with supervised([Node(broker), Node(service, after=("broker",))], history) as supervisor:
        await supervisor.start()
        before = service.pid
        broker.kill()
        await history.until(times_ready("broker", 2))
        assert service.pid == before
        [restarting] = [s for s in history.statuses if s.state is PartState.RESTARTING]
        assert (restarting.name, restarting.message) == ("broker", "ended with exit code -9")
        again = history.statuses[-1]
        assert (again.restarts, again.message) == (1, "last restart: ended with exit code -9")


async def test_what_stands_on_a_part_that_forgets_is_started_anew(tmp_path: Path) -> None:
    history = History()
    broker, topics, service, database = (
        Sleeper(name, tmp_path) for name in ("broker", "topics", "service", "database")
    )
    nodes = [
        Node(broker, forgets=True),
        Node(topics, after=("broker",), forgets=True),
        Node(service, after=("topics", "database")),
        Node(database),
    ]
    async with supervised(nodes, history) as supervisor:
        await supervisor.start()
        before = (service.pid, database.pid)
        broker.kill()
        await history.until(times_ready("service", 2))
        assert service.pid != before[0]
        assert database.pid == before[1]
        # In order again.
        again = history.order(PartState.READY)[4:]
        assert again == ["broker", "topics", "service"]


async def test_a_part_that_keeps_failing_is_tried_again_and_again(tmp_path: Path) -> None:
    class Flaky(Sleeper):
        starts = 0

        def command(self) -> list[str]:
            self.starts += 1
            return ["sleep", "600"] if self.starts in (1, 4) else ["false"]

        async def ready(self) -> bool:
            return self.starts in (1, 4)

    history = History()
    part = Flaky("flaky", tmp_path)
    async with supervised([Node(part)], history) as supervisor:
        await supervisor.start()
        part.kill()
        await history.until(times_ready("flaky", 2))
        assert part.starts == 4
        assert history.statuses[-1].restarts == 3


async def test_any_error_of_a_first_start_is_the_parts_failure(tmp_path: Path) -> None:
    class Unprepared(Sleeper):
        async def prepare(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    async with supervised([Node(Unprepared("database", tmp_path))], History()) as supervisor:
        with pytest.raises(PartFailed, match=r"cannot start: .*No space left") as raised:
            await supervisor.start()
    assert str(tmp_path / "database.log") in raised.value.report()


async def test_a_part_whose_restart_meets_an_error_is_tried_again(tmp_path: Path) -> None:
    class Unlucky(Sleeper):
        starts = 0

        async def prepare(self) -> None:
            self.starts += 1
            if self.starts == 2:
                raise OSError(errno.ENOSPC, "No space left on device")

        async def ready(self) -> bool:
            if self.starts == 3:
                raise ValueError("an answer that is none")
            return True

    history = History()
    part = Unlucky("unlucky", tmp_path)
    async with supervised([Node(part)], history) as supervisor:
        await supervisor.start()
        part.kill()
        await history.until(times_ready("unlucky", 2))
        ended, full, wrong = [s.message for s in history.statuses if s.state is PartState.RESTARTING]
        assert "ended with exit code" in ended
        assert "No space left on device" in full
        assert "an answer that is none" in wrong


async def test_stopping_in_the_middle_of_a_start_leaves_nothing(tmp_path: Path) -> None:
    class Never(Sleeper):
        async def ready(self) -> bool:
            return False

    history = History()
    part = Never("never", tmp_path)
    async with supervised([Node(part)], history) as supervisor:
        starting = asyncio.create_task(supervisor.start())
        await history.until(lambda statuses: any(s.state is PartState.STARTING for s in statuses))

        async def started() -> int | None:
            return part.pid

        pid = await eventually(started, lambda found: found is not None)
        assert pid is not None
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
    assert not psutil.pid_exists(pid)


async def test_a_part_that_does_not_want_to_stop_is_killed(tmp_path: Path) -> None:
    history = History()
    part = Stubborn("stubborn", tmp_path)
    async with supervised([Node(part)], history) as supervisor:
        await supervisor.start()
    assert history.order(PartState.STOPPED) == ["stubborn"]
    assert await part.wait() == -signal.SIGKILL


async def test_a_part_that_talks_for_ever_fills_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 64 << 10
    monkeypatch.setattr(logs, "MAX_LOG_BYTES", limit)
    monkeypatch.setattr(logs, "LOOK_SECONDS", 0.01)
    talkative = Talkative("talkative", tmp_path)
    aside = tmp_path / "talkative.log.1"
    async with supervised([Node(talkative)], History()) as supervisor:
        await supervisor.start()
        pid = talkative.pid

        async def times_set_aside() -> int:
            if aside.exists():
                seen.add(aside.stat().st_mtime_ns)
            return len(seen)

        seen: set[int] = set()
        # It goes on talking into the log that was emptied.
        await eventually(times_set_aside, lambda count: count >= 3)
        assert aside.stat().st_size == limit
        assert talkative.pid == pid
