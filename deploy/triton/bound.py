"""Run a program that ends when its parent does: `python -I -S bound.py PARENT PROGRAM ARGUMENT...`."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606
