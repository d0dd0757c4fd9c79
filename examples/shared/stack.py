"""A story told to a stack: one that runs, or one of its own that is started for it and stopped again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from examples.shared.stages import Stages, console
from rich.text import Text

from headrace import telemetry
from headrace.client import HeadraceClient
from headrace.client.targets import Targets
from headrace.embedded import commands

SUCCEEDED, FAILED, INTERRUPTED = 0, 1, 130
ROOT = Path(__file__).resolve().parents[2]

Tell = Callable[[HeadraceClient, Stages], Awaitable[None]]


def in_own_stack(name: str, tell: Tell, *, broker: str, keep: bool) -> int:
    """Start a stack, tell the story, stop the stack, and remove its data folder; returns the exit code."""
    data = _fresh_folder(name)

    def perform(stages: Stages) -> None:
        with stages.stage("Start the stack: broker, PostgreSQL, Triton, Envoy, five services"):
            commands.up(data, broker=broker, tied=True)
        try:
            asyncio.run(_told(name, data, tell, stages))
        finally:
            with stages.stage("Stop everything"):
                commands.down(data)

    code = _judged(data, perform)
    if code == SUCCEEDED and not keep:
        shutil.rmtree(data, ignore_errors=True)
    return code


def in_stack(name: str, tell: Tell, data: Path) -> int:
    """Tell the story to the stack that runs in a folder; returns the exit code."""
    return _judged(data, lambda stages: asyncio.run(_told(name, data, tell, stages)))


async def _told(name: str, data: Path, tell: Tell, stages: Stages) -> None:
    targets = Targets.discover(data)
    tracing = telemetry.setup(name, str(os.getpid()), f"http://{targets.addresses['trace_sink']}")
    try:
        async with HeadraceClient(targets) as client:
            await tell(client, stages)
    finally:
        tracing.shutdown()


def _judged(data: Path, perform: Callable[[Stages], None]) -> int:
    # As Ctrl-C does: whatever ends the story, the stack is stopped first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    stages = Stages()
    code = FAILED
    try:
        perform(stages)
    except KeyboardInterrupt:
        stages.failures.append("interrupted")
        code = INTERRUPTED
    except Exception as error:
        # Whatever it is, also what nobody thought of: one line, and where to read on.
        where = f"{stages.broken}: " if stages.broken else ""
        stages.failures.append(where + (str(error) or repr(error)))
    if stages.failures:
        for failure in stages.failures:
            console.print(Text(f"failed: {failure}", "bold red"), soft_wrap=True)
        console.print(Text(f"Logs: {data / 'logs'}"), soft_wrap=True)
        return code
    console.print(stages.table())
    console.print(Text("Everything is as it should be.", "bold green"))
    return SUCCEEDED


def _fresh_folder(name: str) -> Path:
    """A data folder of its own: stories run side by side, and each begins with nothing."""
    root = ROOT / ".headrace"
    root.mkdir(exist_ok=True)
    data = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root))
    data.chmod(0o755)
    return data
