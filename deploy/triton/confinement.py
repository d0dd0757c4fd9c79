"""Where a model's memory ends: its process fails before the machine does.

A leak, or a request that needs too much, fails in the model: its callers are told, and a rollout goes back.
Should the machine run out of memory all the same, its kernel ends models first, and neither Triton nor what
else runs beside it. What ended is loaded anew.
"""

import os
import re
import resource
from contextlib import suppress
from pathlib import Path

# What the process of one version may hold; empty or 0: as much as there is.
LIMIT_VARIABLE = "HEADRACE_MODEL_MEMORY_BYTES"
# Whoever fails with so much of it in use has leaked.
NEARLY_ALL = 0.9
# Of 1000: who has more goes first.
OOM_SCORE = 500


def confine():
    """Bound this process's memory, before it loads anything."""
    limit = _limit()
    if limit:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    # Where that is not allowed, a machine without memory chooses by size.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))


def exhausted():
    """Whether nearly all of the memory is in use, which only a new process gives back."""
    limit = _limit()
    if not limit:
        return False
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"^VmData:\s*(\d+) kB", status, re.MULTILINE)[1]) > NEARLY_ALL * limit


def _limit():
    return int(os.environ.get(LIMIT_VARIABLE) or 0)
