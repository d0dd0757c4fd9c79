"""`make demo`, as a newcomer runs it, and stopped as an impatient one does."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.processes import running_in

from headrace.embedded.stack_file import holder

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "examples.demo"]

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def data_folder(output: str) -> Path:
    """The demo's own data folder, from the last line that says where the logs are."""
    return ROOT / re.findall(r"Logs: (\S*demo-\S*)/logs", output)[-1]


def test_the_demo_succeeds_and_leaves_nothing() -> None:
    finished = subprocess.run(
        DEMO, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280, cwd=ROOT
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "464 samples stored, 464 expected" in finished.stdout
    assert "465 samples stored, 465 expected" in finished.stdout
    assert "its entry is REPLAYED, with the original bytes" in finished.stdout
    assert "Everything is as it should be." in finished.stdout
    assert "version 2 had 10 %, 50 %, 100 % of the traffic" in finished.stdout
    assert "version 3 was rolled back" in finished.stdout
    assert "version 2 answers all calls again" in finished.stdout
    data = data_folder(finished.stdout)
    assert not data.exists()
    assert running_in(data) == []


@pytest.mark.parametrize(("moment", "is_up"), [("Start the stack", False), ("Ingestion validates", True)])
def test_ctrl_c_at_any_moment_leaves_no_process(moment: str, is_up: bool) -> None:
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
        if is_up:
            # So that finding none below means something.
            assert running_in(data_folder("".join(seen)))
        os.killpg(demo.pid, signal.SIGINT)
        seen += demo.stdout.readlines()
        assert demo.wait(120) == 130, "".join(seen)
    data = data_folder("".join(seen))
    assert holder(data) is None
    assert running_in(data) == []
    shutil.rmtree(data)
