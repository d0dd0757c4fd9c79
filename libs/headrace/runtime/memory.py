"""How a service's process uses memory."""

from __future__ import annotations

import ctypes
import gc
from typing import Final

# malloc.h of the GNU C library.
_M_ARENA_MAX: Final = -8
_ARENAS: Final = 2


def settle_memory() -> None:
    """Call it when everything is imported, and before threads are started.

    What was imported stays; to look through it again and again would stop all for a tenth of a second. And
    the GNU C library gives threads up to eight arenas for each core, each of which keeps what was freed in
    it: with two of them, a process that works in threads stays smaller, and is no slower.
    """
    gc.freeze()
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_ARENA_MAX, _ARENAS)
