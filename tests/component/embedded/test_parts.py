"""Parts that start, say why they do not, and never outlive who started them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest
from tests.support.waiting import eventually

from headrace.embedded.parts import Part, PartFailed, free_port
from headrace.embedded.parts.kafka import ApacheKafka
from headrace.embedded.parts.process import is_free


class Sleeper(Part):
    name = "sleeper"

    def command(self) -> list[str]:
        return ["sleep", "600"]


class Broken(Part):
    name = "broken"
    hint = "Do this and that."

    def command(self) -> list[str]:
        return ["sh", "-c", "echo what went wrong; exit 3"]

    async def ready(self) -> bool:
        return False


async def test_a_part_that_ends_while_starting_tells_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(PartFailed) as raised:
        await Broken(tmp_path, tmp_path).start()
    report = raised.value.report()
    assert "exit code 3" in report
    assert "what went wrong" in report
    assert str(tmp_path / "broken.log") in report
    assert "Do this and that." in report


async def test_a_stopped_part_is_gone(tmp_path: Path) -> None:
    part = Sleeper(tmp_path, tmp_path)
    await part.start()
    pid = part.pid
    assert pid is not None
    await part.stop()
    assert not psutil.pid_exists(pid)


async def test_a_preparation_that_is_cancelled_leaves_nothing_of_what_it_started(tmp_path: Path) -> None:
    started = tmp_path / "started"
    part = Sleeper(tmp_path, tmp_path)
    preparing = asyncio.create_task(
        part.run_before("sh", "-c", f"sleep 600 & echo $! > {started}.new; mv {started}.new {started}; wait")
    )
    await eventually(lambda: asyncio.to_thread(started.exists), bool)
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preparing
    pid = int(started.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_a_part_dies_with_its_supervisor(tmp_path: Path) -> None:
    program = (
        "import asyncio, pathlib, sys\n"
        "from tests.component.embedded.test_parts import Sleeper\n"
        "async def main():\n"
        "    folder = pathlib.Path(sys.argv[1])\n"
        "    part = Sleeper(folder, folder)\n"
        "    await part.start()\n"
        "    print(part.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(  # noqa: ASYNC220 - it returns at once
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as supervisor:
        assert supervisor.stdout is not None
        orphan = psutil.Process(int(await asyncio.to_thread(supervisor.stdout.readline)))
        os.kill(supervisor.pid, signal.SIGKILL)
    gone, _ = psutil.wait_procs([orphan], timeout=10)
    assert gone == [orphan]


def test_a_taken_port_is_not_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not is_free("127.0.0.1", taken.getsockname()[1])
    assert is_free("127.0.0.1", free_port())


@pytest.mark.broker
@pytest.mark.skipif(os.environ.get("HEADRACE_TEST_BROKER") != "kafka", reason="formats Apache Kafka's log")
async def test_kafkas_log_is_formatted_though_its_cluster_id_begins_with_a_hyphen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uuid.uuid4", lambda: uuid.UUID(bytes=b"\xfb" * 16))
    broker = ApacheKafka(tmp_path, tmp_path, free_port(), free_port())
    await broker.prepare()
    assert "cluster.id=-" in (tmp_path / "log" / "meta.properties").read_text()
