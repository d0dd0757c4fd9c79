"""What `headrace up`, `down` and `status` do."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.embedded.options import EMBEDDED, StackOptions, choose
from headrace.embedded.ports import PORTS_FILE, RememberedPorts
from headrace.embedded.progress import following, show_note, show_summary
from headrace.embedded.stack_file import (
    EXIT_IN_USE,
    FAILURE_FILE,
    STACK_FILE,
    PartState,
    PartStatus,
    Stack,
    StackState,
    holder,
)
from headrace.errors import FailedPrecondition, HeadraceError, Internal, Unavailable
from headrace.runtime.children import bound_to_parent

Progress = Callable[[Stack], None]

POLL_SECONDS = 0.1
# Every part has a deadline of its own, well below this in sum.
STOP_SECONDS = 120.0
PROBE_SECONDS = 5.0


def up(
    data: Path,
    *,
    broker: str = EMBEDDED,
    postgres: str = EMBEDDED,
    store: str = "",
    host: str = "127.0.0.1",
    otlp_endpoint: str = "",
    foreground: bool = False,
) -> None:
    """Start a stack, showing each part as it comes up; stay until Ctrl-C with `foreground`.

    Where it runs already with the same options, say so. Raises InvalidArgument for options,
    FailedPrecondition/STACK_RUNS for other ones than it runs with, Internal/STACK_FAILED with the report
    of a part that does not start.
    """
    options = choose(
        data, broker=broker, postgres=postgres, store=store, host=host, otlp_endpoint=otlp_endpoint
    )
    with following() as shown:
        process, stack = _start(options, shown, tied=foreground)
    show_summary(stack, new=process is not None)
    if foreground and process is not None:
        try:
            process.wait()
        except KeyboardInterrupt:
            _stop_shown(options.data, stack.pid)


@contextmanager
def running(options: StackOptions, on_progress: Progress) -> Iterator[Stack]:
    """A stack for the length of a block, which ends with this process in any case.

    Raises FailedPrecondition/STACK_RUNS where one runs in the folder already, and else as `up` does.
    Enter it on the main thread.
    """
    if holder(options.data) is not None:
        raise _runs(options.data)
    process, stack = _start(options, on_progress, tied=True)
    assert process is not None
    try:
        yield stack
    finally:
        stop(options.data, process.pid, on_progress)
        process.wait()


def down(data: Path) -> None:
    """Stop the stack that runs in a folder, and clear away what a killed one left there."""
    pid = holder(data)
    if pid is None:
        (data / STACK_FILE).unlink(missing_ok=True)
        show_note(f"no stack runs in {data}")
        return
    _stop_shown(data, pid)


def status(data: Path) -> list[PartStatus]:
    """Each part's state, asked of the part itself now. Raises Unavailable/NO_STACK where none runs."""
    stack = Stack.read(data)
    if stack is None or holder(data) is None:
        raise Unavailable(
            "NO_STACK", f"no stack runs in {data}", metadata={"next": "Start one with `headrace up`."}
        )
    return asyncio.run(_probe(stack))


def stop(data: Path, pid: int, on_progress: Progress) -> None:
    """Ask a stack's supervisor to stop, and wait until nothing of it runs."""
    _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    try:
        while holder(data) == pid:
            if stack := Stack.read(data):
                on_progress(stack)
            if time.monotonic() > deadline:
                # Its parts end with it.
                _signal(pid, signal.SIGKILL)
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        # Somebody does not want to wait: the supervisor kills its parts at the second signal.
        _signal(pid, signal.SIGTERM)
        while holder(data) == pid:
            time.sleep(POLL_SECONDS)
        raise


def _start(
    options: StackOptions, on_progress: Progress, *, tied: bool
) -> tuple[subprocess.Popen[bytes] | None, Stack]:
    """Start a stack, or find it running; returns its process where it is new, and its final state."""
    data = options.data
    pid = holder(data)
    if pid is not None:
        return None, _follow_running(options, pid, on_progress)
    data.mkdir(parents=True, exist_ok=True)
    (data / STACK_FILE).unlink(missing_ok=True)
    (data / FAILURE_FILE).unlink(missing_ok=True)
    (data / "logs").mkdir(exist_ok=True)
    process = _spawn(options, tied=tied)
    try:
        return process, _until_up(process, data, on_progress)
    except BaseException:
        if process.poll() is None:
            stop(data, process.pid, on_progress)
            process.wait()
        raise


def _until_up(process: subprocess.Popen[bytes], data: Path, on_progress: Progress) -> Stack:
    while (code := process.poll()) is None:
        stack = Stack.read(data)
        if stack is not None and stack.pid == process.pid:
            on_progress(stack)
            if stack.state is StackState.READY:
                return stack
        time.sleep(POLL_SECONDS)
    raise _failure(data, code)


def _spawn(options: StackOptions, *, tied: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "headrace.embedded.supervisor", *(["--tied"] if tied else [])]
    with (options.data / "logs" / "supervisor.log").open("ab") as log:
        process = subprocess.Popen(
            # Until it is up it ends with this command, however that ends; the supervisor itself undoes that.
            bound_to_parent(command, death_signal=signal.SIGTERM),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    assert process.stdin is not None
    with process.stdin as options_in:
        options_in.write(options.model_dump_json().encode())
    return process


def _follow_running(options: StackOptions, pid: int, on_progress: Progress) -> Stack:
    """Wait until a stack that another command started is up."""
    data = options.data
    while holder(data) == pid:
        stack = Stack.read(data)
        if stack is not None and stack.pid == pid:
            if stack.options != options or stack.state is StackState.STOPPING:
                raise _runs(data)
            on_progress(stack)
            if stack.state is StackState.READY:
                return stack
        time.sleep(POLL_SECONDS)
    raise _failure(data, None)


def _stop_shown(data: Path, pid: int) -> None:
    show_note(f"stopping the stack in {data} ...")
    stop(data, pid, lambda _stack: None)
    show_note("stopped; its data stays")


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _runs(data: Path) -> FailedPrecondition:
    return FailedPrecondition(
        "STACK_RUNS",
        f"another stack runs in {data}",
        metadata={"next": "Stop it with `headrace down`, or choose another folder with --data."},
    )


def _failure(data: Path, code: int | None) -> HeadraceError:
    if code == EXIT_IN_USE:
        return _runs(data)
    try:
        report = (data / FAILURE_FILE).read_text().rstrip()
    except OSError:
        ended = "ended" if code is None else f"ended with exit code {code}"
        report = f"the supervisor {ended}"
    return Internal(
        "STACK_FAILED",
        f"the stack did not start: {report}",
        metadata={"next": f"More is in {data / 'logs'}."},
    )


async def _probe(stack: Stack) -> list[PartStatus]:
    from headrace.embedded.plan import Plan

    plan = Plan(stack.options, RememberedPorts(stack.options.data / PORTS_FILE))
    parts = {node.name: node.part for node in plan.nodes()}

    async def probe(status: PartStatus) -> PartStatus:
        if status.state is not PartState.READY:
            return status
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                problem = await parts[status.name].problem()
        except TimeoutError:
            problem = f"it did not answer within {PROBE_SECONDS:.0f} s"
        if not problem:
            return status
        return status.model_copy(update={"state": PartState.UNREADY, "message": problem})

    return list(await asyncio.gather(*map(probe, stack.parts.values())))
