"""`make demo`, as a newcomer runs it, and stopped as an impatient one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, str(ROOT / "examples" / "demo")]

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def left_behind(marker: str) -> list[psutil.Process]:
    """Processes that have the folder in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(marker in argument for argument in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def data_folder(output: str) -> str:
    """The demo's own data folder, from the line that says where the logs are."""
    line = next(line for line in output.splitlines() if "/logs" in line and "demo-" in line)
    return line[line.index("/") :].removesuffix("/logs").strip()


def test_the_demo_succeeds_and_leaves_nothing() -> None:
    finished = subprocess.run(
        DEMO, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280, cwd=ROOT
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "464 samples stored, 464 expected" in finished.stdout
    assert "Everything is as it should be." in finished.stdout
    data = data_folder(finished.stdout)
    assert not Path(data).exists()
    assert left_behind(data) == []


@pytest.mark.parametrize("moment", ["Start the stack", "Ingestion validates"])
def test_ctrl_c_at_any_moment_leaves_no_process(moment: str) -> None:
    with subprocess.Popen(
        DEMO,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        env={**os.environ, "COLUMNS": "200"},
    ) as demo:
        assert demo.stdout is not None
        seen = []
        for line in demo.stdout:
            seen.append(line)
            if moment in line:
                break
        os.killpg(demo.pid, signal.SIGINT)
        seen += demo.stdout.readlines()
        assert demo.wait(120) == 130, "".join(seen)
    data = data_folder("".join(seen))
    assert left_behind(data) == []
