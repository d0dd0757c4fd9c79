"""The supervisor's process, seen from the command that starts it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Final

from headrace.embedded.options import StackOptions
from headrace.runtime.children import bound_to_parent

# By the environment, which only its own user can read: a DSN may hold a password.
OPTIONS_VARIABLE: Final = "HEADRACE_STACK_OPTIONS"


def spawn(options: StackOptions, log: Path, *, tied: bool) -> int:
    """Start a supervisor in a session of its own; returns its process id.

    Until the stack is up it stops when this process ends, however that ends; `tied`, for good.
    """
    command = [sys.executable, "-m", "headrace.embedded.supervisor", *(["--tied"] if tied else [])]
    arguments = bound_to_parent(command, death_signal=signal.SIGTERM)
    # Not subprocess.Popen, which takes a child that outlives it for a mistake.
    return os.posix_spawn(
        arguments[0],
        arguments,
        {**os.environ, OPTIONS_VARIABLE: options.model_dump_json()},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )


def exit_code(pid: int) -> int | None:
    """How a child has ended, negative for a signal; None while it runs."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def wait(pid: int) -> int:
    """Wait for a child's end; how it has ended, negative for a signal."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal, unless there is no such process any more."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
