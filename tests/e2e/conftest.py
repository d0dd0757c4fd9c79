"""A whole stack for the end-to-end tests, and what users do with it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from headrace.embedded import commands
from headrace.embedded.stack_file import Stack as StackFile

ROOT = Path(__file__).parents[2]
BROKER = os.environ.get("HEADRACE_TEST_BROKER", "embedded")


@dataclass
class Stack:
    """A running stack."""

    data: Path

    def headrace(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command, as a person would."""
        finished = subprocess.run(
            [sys.executable, "-m", "headrace.cli.main", *arguments, "--data", str(self.data)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=ROOT,
        )
        if check:
            assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished

    def target(self, name: str) -> str:
        """A part's address."""
        stack = StackFile.read(self.data)
        assert stack is not None
        return stack.targets[name]

    def json(self, *arguments: str) -> list[dict[str, object]]:
        """Run the command, and read the JSON that it prints."""
        rows: list[dict[str, object]] = json.loads(self.headrace(*arguments, "-o", "json").stdout)
        return rows


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack, started once for all tests of the session."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="headrace-e2e-") as folder:
        data = Path(folder) / "data"
        commands.up(data, broker=BROKER, tied=True)
        try:
            yield Stack(data)
        finally:
            commands.down(data)


@pytest.fixture
def loop_runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def unique(name: str) -> str:
    """A name that no other test uses."""
    return f"{name}-{uuid.uuid4().hex[:8]}"
