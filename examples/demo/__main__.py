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
from tritonclient.utils import InferenceServerException

from headrace import telemetry
from headrace.client import HeadraceClient
from headrace.client.targets import Targets
from headrace.embedded import commands
from headrace.errors import HeadraceError

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


def main() -> int:
    """Run the demo; 0 only if every step's result is right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", default="embedded", help="embedded, kafka or HOST:PORT")
    parser.add_argument("--keep", action="store_true", help="keep the data folder")
    arguments = parser.parse_args()
    # As Ctrl-C does: whatever ends the demo, the stack is stopped first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    root = Path(__file__).resolve().parents[2] / ".headrace"
    root.mkdir(exist_ok=True)
    # A folder of its own: demos run side by side, and each begins with nothing.
    data = Path(tempfile.mkdtemp(prefix="demo-", dir=root))
    data.chmod(0o755)
    stages = Stages()
    failure = ""
    started = False
    try:
        with stages.stage("Start the stack: broker, PostgreSQL, Triton, Envoy, five services"):
            commands.up(data, broker=arguments.broker, tied=True)
            started = True
        asyncio.run(run(data, stages))
    except KeyboardInterrupt:
        failure = "interrupted"
    except (HeadraceError, InferenceServerException, TimeoutError, RuntimeError) as error:
        failure = str(error)
    finally:
        if started:
            with stages.stage("Stop everything"):
                commands.down(data)

    if failure or stages.failures:
        for line in (failure, *stages.failures):
            if line:
                console.print(Text(f"failed: {line}", "bold red"))
        console.print(f"Logs: {data / 'logs'}")
        return 130 if failure == "interrupted" else 1
    console.print(stages.table())
    console.print(Text("Everything is as it should be.", "bold green"))
    console.print(NEXT)
    if not arguments.keep:
        shutil.rmtree(data, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
