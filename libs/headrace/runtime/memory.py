"""How a process uses memory."""

from __future__ import annotations

import ctypes
import gc
from typing import Final

# malloc.h of the GNU C library.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_ARENAS: Final = 2
# Python's 700 are a few requests in flight: with a thousand, looking for cycles took a tenth of the time.
NEW_OBJECTS: Final = 10_000
_KEPT_BYTES: Final = 4 << 20


def settle_memory(new_objects: int = NEW_OBJECTS) -> None:
    """Call it when everything is imported, and before threads are started.

    Cycles are looked for when there are so many new objects.

    What was imported stays; to look through it again and again would stop all for a tenth of a second.

    The GNU C library keeps what was freed: in up to eight arenas for each core, and the more, the larger the
    pieces were. A process that works in threads, on batches of some megabytes, stays some 40 MiB smaller at
    its peak, and 100 MiB afterwards, where it has two arenas that keep 4 MiB each, and is as fast.
    """
    gc.freeze()
    gc.set_threshold(new_objects)
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_ARENA_MAX, _ARENAS)
        library.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
