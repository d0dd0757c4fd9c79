"""The one way in which functions are compiled here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, ParamSpec, TypeVar, cast

from numba import njit

# Without numba's reference counts (`_nrt`), which cost more than small functions do. In exchange nothing
# compiled can allocate: arrays are made by the caller.
_OPTIONS: Final[Mapping[str, Any]] = {"nogil": True, "forceinline": True, "_nrt": False}

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function over numbers and arrays to machine code when it is first called.

    It runs without the interpreter's lock, so that threads run side by side, and the machine code is cached
    on disk where that can be. Indexes are **not** checked: the function itself must never leave its arrays,
    whatever they hold.
    """
    try:
        kept = njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:
        # No folder can be written, in a container with a read-only file system say: compiled at each start.
        kept = njit(**_OPTIONS)(function)
    return cast("Callable[P, R]", kept)
