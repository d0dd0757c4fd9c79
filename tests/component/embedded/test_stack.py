"""A whole stack on this machine: up, status, down, and what happens when something of it dies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.support.processes import running_in

from headrace.embedded import commands
from headrace.embedded.parts.outside import topic_names
from headrace.embedded.stack_file import PartState, Stack, StackState, holder
from headrace.errors import FailedPrecondition, Internal, Unavailable
from headrace.messaging.topics import load_topics

pytestmark = [pytest.mark.e2e, pytest.mark.broker, pytest.mark.timeout(600)]

BROKER = os.environ.get("HEADRACE_TEST_BROKER", "embedded")
DEADLINE = 90.0
UP = [sys.executable, "-m", "headrace.cli.main", "up", "--broker", BROKER]


def fresh_folder() -> Iterator[Path]:
    # Not in pytest's folder, which other users may not enter: PostgreSQL runs as one where this is root.
    with tempfile.TemporaryDirectory(prefix="headrace-stack-") as folder:
        data = Path(folder) / "data"
        yield data
        if holder(data) is not None:
            commands.down(data)


@pytest.fixture
def data() -> Iterator[Path]:
    """A folder for a stack of the test's own."""
    yield from fresh_folder()


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    """A folder with a stack that runs, for tests that leave it as they found it."""
    for data in fresh_folder():
        commands.up(data, broker=BROKER, tied=True)
        yield data


def read(data: Path) -> Stack:
    found = Stack.read(data)
    assert found is not None
    return found


def states(data: Path) -> dict[str, PartState]:
    return {part.name: part.state for part in commands.status(data)}


def until(condition: Callable[[], bool], deadline: float = DEADLINE) -> None:
    ends = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < ends, "not within the deadline"
        time.sleep(0.05)


def family(stack: Stack) -> list[psutil.Process]:
    supervisor = psutil.Process(stack.pid)
    return [supervisor, *supervisor.children(recursive=True)]


def all_gone(processes: list[psutil.Process]) -> bool:
    def runs(process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return not any(map(runs, processes))


def test_every_part_is_ready_and_every_topic_there(shared: Path) -> None:
    assert set(states(shared).values()) == {PartState.READY}
    topics = asyncio.run(topic_names(read(shared).targets["kafka"]))
    assert load_topics().keys() <= topics


def test_up_again_says_that_it_runs(shared: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pid = read(shared).pid
    commands.up(shared, broker=BROKER)
    assert read(shared).pid == pid
    assert "runs already" in capfd.readouterr().out
    with pytest.raises(FailedPrecondition, match="another stack runs"):
        commands.up(shared, broker=BROKER, store="s3://elsewhere")


def test_stacks_run_side_by_side(shared: Path, data: Path) -> None:
    commands.up(data, broker=BROKER, tied=True)
    assert not set(read(shared).targets.values()) & set(read(data).targets.values())
    commands.down(data)
    assert set(states(shared).values()) == {PartState.READY}


def test_killed_parts_come_back(shared: Path) -> None:
    names = ("postgres", "triton", "envoy", "trace-sink", "scheduling")
    before = read(shared).parts
    for name in names:
        pid = before[name].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    until(lambda: all(read(shared).parts[name].restarts == 1 for name in names))
    until(lambda: set(states(shared).values()) == {PartState.READY})
    assert all(read(shared).parts[name].pid != before[name].pid for name in names)


def test_a_killed_broker_comes_back_with_its_topics(shared: Path) -> None:
    parts = read(shared).parts
    pid, before = parts["broker"].pid, parts["ingestion"].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: read(shared).parts["broker"].restarts == 1)
    until(lambda: set(states(shared).values()) == {PartState.READY})
    assert load_topics().keys() <= asyncio.run(topic_names(read(shared).targets["kafka"]))
    # Offsets of a broker that forgot mean nothing: who remembers them is started anew.
    assert (read(shared).parts["ingestion"].pid != before) == (BROKER == "embedded")


def test_status_names_what_a_part_lacks(shared: Path) -> None:
    pid = read(shared).parts["registry"].pid
    assert pid is not None
    process = psutil.Process(pid)
    process.suspend()
    try:
        status = {part.name: part for part in commands.status(shared)}
    finally:
        process.resume()
    assert status["registry"].state is PartState.UNREADY
    assert "did not answer" in status["registry"].message


def test_down_leaves_nothing_and_the_next_start_has_the_same_addresses(data: Path) -> None:
    commands.up(data, broker=BROKER, tied=True)
    first = read(data)
    processes = family(first)
    commands.down(data)
    assert all_gone(processes)
    assert running_in(data) == []
    assert holder(data) is None
    with pytest.raises(Unavailable, match="no stack runs"):
        commands.status(data)
    # Nothing to do, and no error.
    commands.down(data)

    commands.up(data, broker=BROKER, tied=True)
    second = read(data)
    assert second.targets == first.targets

    # Nothing outlives a killed supervisor, and the next start works.
    processes = family(second)
    os.kill(second.pid, signal.SIGKILL)
    until(lambda: all_gone(processes), 15)
    with pytest.raises(Unavailable, match="no stack runs"):
        commands.status(data)
    commands.up(data, broker=BROKER, tied=True)
    assert set(states(data).values()) == {PartState.READY}


def test_a_stack_outlives_the_command_that_started_it(data: Path) -> None:
    subprocess.run([*UP, "--data", str(data)], check=True, capture_output=True, timeout=120)
    stack = read(data)
    assert stack.state is StackState.READY
    assert set(states(data).values()) == {PartState.READY}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_start_that_is_interrupted_leaves_nothing(data: Path, number: signal.Signals) -> None:
    with subprocess.Popen([*UP, "--data", str(data)], stderr=subprocess.PIPE, start_new_session=True) as up:
        assert up.stderr is not None
        up.stderr.readline()
        processes = running_in(data)
        os.kill(up.pid, number)
        up.communicate(timeout=60)
    until(lambda: holder(data) is None, 60)
    until(lambda: all_gone(processes), 15)
    until(lambda: not running_in(data), 15)


def test_in_the_foreground_it_stops_with_ctrl_c(data: Path) -> None:
    command = [*UP, "--foreground", "--data", str(data)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as up:
        assert up.stdout is not None
        until(lambda: any("The stack is up" in line for line in iter(up.stdout.readline, "")))
        up.send_signal(signal.SIGINT)
        up.communicate(timeout=60)
        assert up.returncode == 0
    assert holder(data) is None
    assert running_in(data) == []


def test_a_part_that_does_not_start_is_reported_and_leaves_nothing(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_TRITON_ENVIRONMENT", str(data / "nowhere"))
    with pytest.raises(Internal) as raised:
        commands.up(data, broker=BROKER)
    assert "triton cannot start: there is no environment at" in raised.value.message
    # What to do about it.
    assert "make setup" in raised.value.message
    assert holder(data) is None
    assert running_in(data) == []


def test_a_service_that_does_not_start_shows_its_last_lines(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_SCHEDULING_LEASE_SECONDS", "soon")
    with pytest.raises(Internal) as raised:
        commands.up(data, broker=BROKER)
    assert "HEADRACE_SCHEDULING_LEASE_SECONDS='soon'" in raised.value.message
    assert str(data / "logs" / "scheduling.log") in raised.value.message
