"""The README's Python examples, run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from tests.e2e.conftest import ROOT, Stack
from tests.e2e.test_platform import live, until

pytestmark = [pytest.mark.e2e, pytest.mark.broker, pytest.mark.timeout(600)]

# Addresses as the README has them, where a stack's usual ports are free.
USUAL = {"kafka": "127.0.0.1:9092", "inference_protocol": "127.0.0.1:8080"}


def run(program: str, stack: Stack) -> str:
    for name, address in USUAL.items():
        program = program.replace(address, stack.target(name))
    finished = subprocess.run(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "HEADRACE_DATA": str(stack.data)},
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_events_of_the_readme_make_the_model_that_it_calls(stack: Stack) -> None:
    produce, call, ask = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    stack.headrace("apply", "-f", "examples/breast-cancer/pipeline.yaml")
    run(produce, stack)

    def rows() -> object:
        [dataset] = [row for row in stack.json("get", "datasets") if row["name"] == "breast-cancer"]
        return dataset["row_count"]

    until(lambda: rows() == 464, "every sample to be stored")
    assert stack.json("get", "rejected", "breast-cancer") == []
    until(lambda: live(stack, "breast-cancer"), "the model to be deployed")
    assert re.match(r"\[\[?\d\]?\] \[\[.*\]\] 1$", run(call, stack).strip())
    assert re.match(r"\[\[?\d\]?\] 1$", run(ask, stack).strip())
