"""What `headrace up`, `down` and `status` do."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.embedded.daemon import exit_code, send, spawn, wait
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
    tied: bool = False,
) -> None:
    """Start a stack, showing each part as it comes up; with `foreground` stay until Ctrl-C.

    It runs until `down`; `tied` or in the foreground, also no longer than this process does.
    Where it runs already with the same options, say so. Raises InvalidArgument for options,
    FailedPrecondition/STACK_RUNS for other ones than it runs with, Internal/STACK_FAILED with the report
    of a part that does not start.
    """
    options = choose(
        data, broker=broker, postgres=postgres, store=store, host=host, otlp_endpoint=otlp_endpoint
    )
    with following() as shown:
        stack, new = _start(options, shown, tied=tied or foreground)
    if not (foreground and new):
        show_summary(stack, new=new)
        return
    try:
        show_summary(stack, new=new)
        code = wait(stack.pid)
    except KeyboardInterrupt:
        _stop_shown(options.data, stack.pid)
        return
    if code != 0:
        raise Internal("STACK_FAILED", f"the stack ended with exit code {code}; its logs: {stack.logs}")


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


def _stop(data: Path, pid: int) -> None:
    """Ask a stack's supervisor to stop, and wait until nothing of it runs.

    Interrupted with Ctrl-C, it kills what still runs.
    """
    send(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    try:
        while _runs(data, pid):
            if time.monotonic() > deadline:
                # Its parts end with it.
                send(pid, signal.SIGKILL)
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        # The supervisor kills its parts at the second signal.
        send(pid, signal.SIGTERM)
        while _runs(data, pid):
            time.sleep(POLL_SECONDS)
        raise


def _runs(data: Path, pid: int) -> bool:
    try:
        return exit_code(pid) is None
    except ChildProcessError:
        # Another command's child: its number may stay for long after its end, its lock does not.
        return holder(data) == pid


def _start(options: StackOptions, on_progress: Progress, *, tied: bool) -> tuple[Stack, bool]:
    """Start a stack, or find it running; returns it when it is up, and whether it is new."""
    data = options.data
    pid = holder(data)
    if pid is not None:
        return _follow_running(options, pid, on_progress), False
    data.mkdir(parents=True, exist_ok=True)
    (data / STACK_FILE).unlink(missing_ok=True)
    (data / FAILURE_FILE).unlink(missing_ok=True)
    (data / "logs").mkdir(exist_ok=True)
    started: int | None = None
    try:
        with uninterrupted():
            started = spawn(options, data / "logs" / "supervisor.log", tied=tied)
        return _follow_new(started, data, on_progress), True
    except KeyboardInterrupt:
        if started is not None:
            _stop(data, started)
        raise


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off Ctrl-C, and what else raises KeyboardInterrupt, to the end of the block."""
    came: list[int] = []
    handlers = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if (handler := signal.getsignal(number)) is signal.default_int_handler
        # Elsewhere nothing is interrupted, and no handler can be set.
        and threading.current_thread() is threading.main_thread()
    }
    for number in handlers:
        signal.signal(number, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _follow_new(pid: int, data: Path, on_progress: Progress) -> Stack:
    """Wait until a stack that this process started is up."""
    while (code := exit_code(pid)) is None:
        stack = Stack.read(data)
        if stack is not None and stack.pid == pid:
            on_progress(stack)
            if stack.state is StackState.READY:
                return stack
        time.sleep(POLL_SECONDS)
    raise _failure(data, code)


def _follow_running(options: StackOptions, pid: int, on_progress: Progress) -> Stack:
    """Wait until a stack that another command started is up."""
    data = options.data
    while holder(data) == pid:
        stack = Stack.read(data)
        if stack is not None and stack.pid == pid:
            if stack.options != options or stack.state is StackState.STOPPING:
                raise _runs_already(data)
            on_progress(stack)
            if stack.state is StackState.READY:
                return stack
        time.sleep(POLL_SECONDS)
    raise _failure(data, None)


def _stop_shown(data: Path, pid: int) -> None:
    show_note(f"stopping the stack in {data} ...")
    _stop(data, pid)
    show_note("stopped; its data stays")


def _runs_already(data: Path) -> FailedPrecondition:
    return FailedPrecondition(
        "STACK_RUNS",
        f"another stack runs in {data}",
        metadata={"next": "Stop it with `headrace down`, or choose another folder with --data."},
    )


def _failure(data: Path, code: int | None) -> HeadraceError:
    if code == EXIT_IN_USE:
        return _runs_already(data)
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
