"""Finding the processes of a stack."""

from __future__ import annotations

from pathlib import Path

import psutil


def running_in(data: Path) -> list[psutil.Process]:
    """Every process that has the data folder in its command line, or works below it as parts do."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            named = any(str(data) in argument for argument in process.cmdline())
            if named or Path(process.cwd()).is_relative_to(data):
                found.append(process)
        except psutil.Error:
            # It has ended since, or is another user's and so none of this stack's.
            continue
    return found
