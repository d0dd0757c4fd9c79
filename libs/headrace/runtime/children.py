"""Child processes that the kernel ends when their parent dies, however that dies."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1

# Runs before the program, in its process, and not as `preexec_fn`: that would run Python in a
# fork of a process whose threads (gRPC's among them) may hold any lock at that moment.
_LAUNCHER = """
import ctypes, os, sys
number, parent, user = map(int, sys.argv[1:4])
if user >= 0:
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
ctypes.CDLL(None).prctl(1, number)
if os.getppid() != parent:
    sys.exit("the parent is gone")
os.execvp(sys.argv[4], sys.argv[4:])
"""


def bound_to_parent(
    command: Sequence[str], *, death_signal: signal.Signals = signal.SIGKILL, user: int | None = None
) -> list[str]:
    """The command that runs `command` so that it gets `death_signal` when this process dies (Linux).

    `user` is another user's and group's number to run it as. The program keeps the process id that the
    launcher started with. The thread that starts it must live as long as this process.
    """
    arguments = [str(int(death_signal)), str(os.getpid()), str(-1 if user is None else user)]
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, *arguments, *command]


def outlive_parent() -> None:
    """Undo `bound_to_parent`, in the child itself."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)
