"""`python -m headrace.embedded.supervisor`: the process that a stack is.

Reads its options as JSON from the environment, holds the data folder's lock, starts every part, keeps
`stack.json` up to date, starts again what ends, and stops everything on SIGTERM or SIGINT (at once on the
second one). Without --tied it outlives the command that started it, once the stack is up.

Exit code 0 after a stop, 1 when a part did not start (`failure.txt` says why), 3 when the folder is in use.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType

from headrace.embedded.daemon import OPTIONS_VARIABLE
from headrace.embedded.options import StackOptions
from headrace.embedded.parts.process import PartFailed
from headrace.embedded.plan import Plan
from headrace.embedded.ports import PORTS_FILE, Ports
from headrace.embedded.privacy_keys import ensure_keys
from headrace.embedded.stack_file import (
    EXIT_FAILED,
    EXIT_IN_USE,
    FAILURE_FILE,
    STACK_FILE,
    AlreadyRuns,
    PartState,
    PartStatus,
    Stack,
    StackState,
    locked,
)
from headrace.embedded.supervision import Node, Supervisor
from headrace.runtime.children import outlive_parent

logger = logging.getLogger("headrace.embedded.supervisor")


class StackRecord:
    """Keeps the stack's file in step with its parts."""

    def __init__(self, plan: Plan, nodes: Mapping[str, Node]) -> None:
        self._nodes = nodes
        self._parts: dict[str, PartStatus] = {}
        self._targets: dict[str, str] = {}
        self._stack = Stack(
            pid=os.getpid(),
            state=StackState.STARTING,
            options=plan.options,
            parts=MappingProxyType(self._parts),
            targets=MappingProxyType(self._targets),
            kafka_idempotence=plan.kafka_idempotence,
            logs=plan.logs,
        )

    def part_changed(self, status: PartStatus) -> None:
        """Record a part's new state."""
        self._parts[status.name] = status
        if status.state is PartState.READY:
            self._targets.update(self._nodes[status.name].targets)
        self.write()

    def stack_changed(self, state: StackState) -> None:
        """Record the whole stack's new state."""
        self._stack = self._stack.model_copy(update={"state": state})
        self.write()

    def write(self) -> None:
        """Write the file."""
        self._stack.model_copy(update={"parts": dict(self._parts), "targets": dict(self._targets)}).write()


async def serve(options: StackOptions, *, tied: bool) -> int:
    """Run a stack until a signal; returns the exit code."""
    ports = Ports(options.data / PORTS_FILE, options.host)
    plan = Plan(options, ports)
    ports.remember()
    plan.logs.mkdir(exist_ok=True)
    ensure_keys(options.data)
    nodes = {node.name: node for node in plan.nodes()}
    record = StackRecord(plan, nodes)
    supervisor = Supervisor(list(nodes.values()), record.part_changed)
    stopping = asyncio.Event()
    _handle_signals(supervisor, stopping)
    try:
        record.write()
        if not await _until_up(supervisor, stopping):
            return 0
        if not tied:
            # Before it is told: the command that waits for it ends then.
            outlive_parent()
        record.stack_changed(StackState.READY)
        logger.info("the stack is up")
        await stopping.wait()
    except PartFailed as failure:
        logger.error("the stack did not start: %s", failure)  # noqa: TRY400 - not this program's fault
        (options.data / FAILURE_FILE).write_text(failure.report() + "\n")
        return EXIT_FAILED
    else:
        return 0
    finally:
        record.stack_changed(StackState.STOPPING)
        await supervisor.stop()
        (options.data / STACK_FILE).unlink(missing_ok=True)
        ports.release()
        logger.info("the stack has stopped")


async def _until_up(supervisor: Supervisor, stopping: asyncio.Event) -> bool:
    """Start; False where a signal came first. Raises PartFailed."""
    starting = asyncio.create_task(supervisor.start())
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait([starting, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if stopping.is_set():
        starting.cancel()
        with suppress(asyncio.CancelledError, PartFailed):
            await starting
        return False
    await starting
    return True


def _handle_signals(supervisor: Supervisor, stopping: asyncio.Event) -> None:
    def stop(number: signal.Signals) -> None:
        if stopping.is_set():
            logger.warning("second %s: killing everything", number.name)
            supervisor.kill()
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)


def main() -> None:
    """Run, and exit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tied", action="store_true", help="stop when the process that started this ends")
    tied = parser.parse_args().tied
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.Formatter.converter = time.gmtime
    options = StackOptions.model_validate_json(os.environ.pop(OPTIONS_VARIABLE))
    try:
        with locked(options.data):
            code = asyncio.run(serve(options, tied=tied))
    except AlreadyRuns:
        logger.error("another stack runs in %s", options.data)  # noqa: TRY400
        code = EXIT_IN_USE
    sys.exit(code)


if __name__ == "__main__":
    main()
