"""A service in a process of its own, with real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SERVICE = """
from __future__ import annotations
import asyncio, sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from headrace.runtime.main import run
from headrace.runtime.faults import fault_point
from headrace.runtime.runner import Runner
from headrace.runtime.settings import PlatformSettings

@dataclass(frozen=True)
class Settings:
    http_address: str = "127.0.0.1:0"

def say(line):
    print(line, flush=True)

@asynccontextmanager
async def part(name):
    say("open " + name)
    yield name
    say("close " + name)

{body}

run("example", Settings(), PlatformSettings(drain_seconds={drain}), build)
"""


class Service:
    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def wait_for_line(self, part: str) -> str:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for line in self.lines():
                if part in line:
                    return line
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"no line with {part!r} in:\n" + "\n".join(self.lines()))

    def wait(self) -> int:
        return self.process.wait(timeout=20)


Start = Callable[..., Service]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    services: list[Service] = []

    def start_one(body: str, *, drain: float = 5.0, env: dict[str, str] | None = None) -> Service:
        script = tmp_path / f"service{len(services)}.py"
        script.write_text(SERVICE.format(body=textwrap.dedent(body), drain=drain))
        log = script.with_suffix(".log")
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, str(script)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | (env or {}),
                text=True,
            )
        services.append(Service(process, log))
        return services[-1]

    yield start_one
    for service in services:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()


WELL_BEHAVED = """
async def build(runner):
    await runner.enter(part("pool"))
    await runner.enter(part("server"))
"""


def get(port: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_with_0(start: Start, number: signal.Signals) -> None:
    service = start(WELL_BEHAVED)
    service.wait_for_line("example is up")
    service.process.send_signal(number)
    assert service.wait() == 0
    spoken = [line for line in service.lines() if line.startswith(("open", "close"))]
    assert spoken == ["open pool", "open server", "close server", "close pool"]


def test_a_second_signal_exits_at_once(start: Start) -> None:
    service = start(
        """
        @asynccontextmanager
        async def slow():
            yield
            say("closing slowly")
            await asyncio.Event().wait()

        async def build(runner):
            await runner.enter(slow())
        """,
        drain=60.0,
    )
    service.wait_for_line("example is up")
    service.process.send_signal(signal.SIGTERM)
    service.wait_for_line("closing slowly")
    service.process.send_signal(signal.SIGTERM)
    assert service.wait() == 128 + signal.SIGTERM


def test_a_failed_task_makes_the_service_exit_with_1(start: Start) -> None:
    service = start(
        """
        async def fail():
            raise RuntimeError("the consumer broke")

        async def build(runner):
            await runner.enter(part("pool"))
            runner.spawn(fail, "consumer")
        """
    )
    assert service.wait() == 1
    assert "close pool" in service.lines()
    assert any("the consumer broke" in line for line in service.lines())


def test_a_failed_start_closes_what_was_opened_and_exits_with_1(start: Start) -> None:
    service = start(
        """
        async def build(runner):
            await runner.enter(part("pool"))
            raise RuntimeError("no database")
        """
    )
    assert service.wait() == 1
    assert "close pool" in service.lines()


def test_a_signal_during_the_start_stops_it(start: Start) -> None:
    service = start(
        """
        async def build(runner):
            await runner.enter(part("pool"))
            await asyncio.Event().wait()
        """
    )
    service.wait_for_line("open pool")
    service.process.send_signal(signal.SIGTERM)
    assert service.wait() == 0
    assert "close pool" in service.lines()


def test_a_task_that_ignores_cancellation_does_not_keep_the_process_alive(start: Start) -> None:
    service = start(
        """
        async def stubborn():
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    say("ignored")

        async def build(runner):
            await runner.enter(part("pool"))
            runner.spawn(stubborn, "stubborn")
        """,
        drain=0.1,
    )
    service.wait_for_line("example is up")
    service.process.send_signal(signal.SIGTERM)
    assert service.wait() == 1
    assert "close pool" in service.lines()


def test_health_and_metrics_are_served(start: Start) -> None:
    service = start(
        """
        async def build(runner):
            runner.health.set_ready("broker", False, "connecting")

            async def connect():
                while not __import__("os").path.exists(sys.argv[0] + ".connected"):
                    await asyncio.sleep(0.01)
                runner.health.set_ready("broker", True)
                say("connected")
            runner.spawn(connect, "connect")
        """
    )
    service.wait_for_line("example is up")
    port = service.wait_for_line("on port").rsplit(" ", 1)[1]

    assert get(port, "/healthz")[0] == 200
    status, body = get(port, "/readyz")
    assert status == 503
    assert json.loads(body)["components"]["broker"] == {"ready": False, "message": "connecting"}
    Path(str(service.log.with_suffix(".py")) + ".connected").touch()
    service.wait_for_line("connected")
    assert get(port, "/readyz")[0] == 200
    status, body = get(port, "/metrics")
    assert status == 200
    assert "process_cpu_seconds_total" in body
    assert get(port, "/elsewhere")[0] == 404
    service.process.send_signal(signal.SIGTERM)
    assert service.wait() == 0


def test_a_fault_point_kills_at_the_named_pass_and_only_once(start: Start, tmp_path: Path) -> None:
    body = """
    async def build(runner):
        for number in range(3):
            fault_point("example.somewhere-else")
            fault_point("example.after-write")
            say(f"pass {number}")
        runner.stop()
    """
    once = tmp_path / "fired"
    env = {"HEADRACE_FAULT": "example.after-write:2", "HEADRACE_FAULT_ONCE": str(once)}
    killed = start(body, env=env)
    assert killed.wait() == -signal.SIGKILL
    assert [line for line in killed.lines() if line.startswith("pass")] == ["pass 0"]
    assert once.exists()
    restarted = start(body, env=env)
    assert restarted.wait() == 0
    assert [line for line in restarted.lines() if line.startswith("pass")] == ["pass 0", "pass 1", "pass 2"]
