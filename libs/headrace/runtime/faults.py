"""Places where a process can be told to die, for tests of what survives.

A fault point does nothing unless the environment names it:

- `HEADRACE_FAULT=ingestion.after-delta-commit`: SIGKILL at the first pass.
- `HEADRACE_FAULT=ingestion.after-delta-commit:3`: SIGKILL at the third pass.
- `HEADRACE_FAULT_ONCE=/path/to/file`: only if that file does not exist yet; it is created first, so
  that the process, started again with the same environment, goes on.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

FAULT_VARIABLE = "HEADRACE_FAULT"
ONCE_VARIABLE = "HEADRACE_FAULT_ONCE"


class _ArmedFault:
    """The one fault point that this process dies at."""

    def __init__(self, specification: str, once: Path | None) -> None:
        name, _, count = specification.partition(":")
        self.name = name
        self._fatal_pass = int(count) if count else 1
        self._passes: Iterator[int] = itertools.count(1)
        self._once = once

    def reached(self) -> None:
        """Count the pass, and die if it is the fatal one."""
        if next(self._passes) < self._fatal_pass or not self._claim():
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def _claim(self) -> bool:
        if self._once is None:
            return True
        try:
            self._once.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def _from_environment() -> _ArmedFault | None:
    specification = os.environ.get(FAULT_VARIABLE, "")
    if not specification:
        return None
    once = os.environ.get(ONCE_VARIABLE, "")
    return _ArmedFault(specification, Path(once) if once else None)


_armed = _from_environment()


def fault_point(name: str) -> None:
    """Die here if the environment asks for it; otherwise cost one comparison."""
    if _armed is not None and _armed.name == name:
        _armed.reached()
