"""The drift example, whole."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from tests.e2e.conftest import ROOT, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.broker, pytest.mark.timeout(400)]


def test_a_replaced_scanner_is_noticed_trained_for_and_recovered_from(stack: Stack) -> None:
    finished = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "drift" / "run.py"), "--data", str(stack.data)],
        capture_output=True,
        text=True,
        timeout=360,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    told = finished.stdout.splitlines()
    name = told[0].partition(":")[0]
    assert re.fullmatch(r"drift in .*mean_radius.*; \d+% are right", told[3])
    assert told[-2] == "the episode is over, replaced: version 2 answers"
    assert told[-1].startswith("no drift, ")
    shown = stack.headrace("drift", name).stdout
    assert shown.splitlines()[0].startswith(f"{name} version 2 trained on {name}/2")
    described = stack.headrace("describe", "pipeline", name).stdout
    assert "state: " in described
    assert "STARTED" in described
