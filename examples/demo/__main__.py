"""`make demo`: the whole path on real data, from events to predictions, in a stack of its own.

Usage: python examples/demo [--broker embedded|kafka] [--keep]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from rich.text import Text
from stages import Stages, console
from story import tell

from headrace import telemetry
from headrace.client import HeadraceClient
from headrace.client.targets import Targets
from headrace.embedded import commands

SUCCEEDED, FAILED, INTERRUPTED = 0, 1, 130

NEXT = """
What next:
  make up                                                      start a stack and leave it running
  . .venv/bin/activate
  headrace status                                              every part, its address and its log
  headrace apply -f examples/breast-cancer/pipeline.yaml       the pipeline of this demo
  python examples/linear-regression/run.py                     another one, on that stack
  headrace get jobs --watch | headrace events --follow | headrace --help
  make down
"""


async def run(data: Path, stages: Stages) -> None:
    """Tell the story to a stack that runs."""
    targets = Targets.discover(data)
    tracing = telemetry.setup("demo", str(os.getpid()), f"http://{targets.addresses['trace_sink']}")
    try:
        async with HeadraceClient(targets) as client:
            await tell(client, stages)
    finally:
        tracing.shutdown()


def perform(data: Path, broker: str, stages: Stages) -> int:
    """Start a stack, tell the story, stop the stack; returns the exit code. What failed is in the stages."""
    try:
        with stages.stage("Start the stack: broker, PostgreSQL, Triton, Envoy, five services"):
            commands.up(data, broker=broker, tied=True)
        try:
            asyncio.run(run(data, stages))
        finally:
            with stages.stage("Stop everything"):
                commands.down(data)
    except KeyboardInterrupt:
        stages.failures.append("interrupted")
        return INTERRUPTED
    except Exception as error:
        # Whatever it is, also what nobody thought of: one line, and where to read on.
        stages.failures.append(str(error) or repr(error))
        return FAILED
    else:
        return FAILED if stages.failures else SUCCEEDED


def fresh_folder() -> Path:
    """A data folder of its own: demos run side by side, and each begins with nothing."""
    root = Path(__file__).resolve().parents[2] / ".headrace"
    root.mkdir(exist_ok=True)
    data = Path(tempfile.mkdtemp(prefix="demo-", dir=root))
    data.chmod(0o755)
    return data


def main() -> int:
    """Run the demo; 0 only if every step's result is right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", default="embedded", help="embedded, kafka or HOST:PORT")
    parser.add_argument("--keep", action="store_true", help="keep the data folder")
    arguments = parser.parse_args()
    # As Ctrl-C does: whatever ends the demo, the stack is stopped first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    data = fresh_folder()
    stages = Stages()
    code = perform(data, arguments.broker, stages)
    if code != SUCCEEDED:
        for failure in stages.failures:
            console.print(Text(f"failed: {failure}", "bold red"), soft_wrap=True)
        console.print(Text(f"Logs: {data / 'logs'}"), soft_wrap=True)
        return code
    console.print(stages.table())
    console.print(Text("Everything is as it should be.", "bold green"))
    console.print(NEXT)
    if not arguments.keep:
        shutil.rmtree(data, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
