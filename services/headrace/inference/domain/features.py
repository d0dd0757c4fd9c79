"""What an explanation gives shares of an answer to: features, and the parts that tensors are cut into."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_ONE: Final = re.compile(r"(?P<name>.+)\[(?P<place>\d+(?:,\d+)*)\]")
_ALL: Final = re.compile(r"(?P<name>.+)\[(?P<sizes>0:\d+(?:,0:\d+)*)\]")
# An image is cut by height and width, and never by colour.
_CUT_DIMENSIONS: Final = 2


@dataclass(frozen=True, slots=True)
class Features:
    """The features of a model's columns.

    `of_number` and `of_text` have for each column the place of its feature in `names`; numbers come first.
    """

    names: tuple[str, ...]
    of_number: NDArray[np.int32]
    of_text: NDArray[np.int32]

    @property
    def scalars(self) -> frozenset[str]:
        """Those that are one value, and no part of a tensor."""
        return frozenset(name for name in self.names if not name.endswith("]"))


def read_features(numbers: Sequence[str], texts: Sequence[str], patches: int) -> Features:
    """Read a signature's `features` and `texts`.

    `patches`: into how many parts each of a tensor's first two dimensions is cut, at most.
    """
    names: list[str] = []
    of_number: list[NDArray[np.int32]] = []
    for name, shape in _columns(numbers):
        parts, places = _cut(name, shape, patches) if shape else ([name], np.zeros(1, np.int32))
        of_number.append(places + len(names))
        names += parts
    of_text = np.arange(len(names), len(names) + len(texts), dtype=np.int32)
    together = np.concatenate(of_number) if of_number else np.empty(0, np.int32)
    return Features((*names, *texts), together, of_text)


def _columns(names: Sequence[str]) -> list[tuple[str, tuple[int, ...]]]:
    """Each feature and its tensor's shape; () of a number."""
    found: list[tuple[str, tuple[int, ...]]] = []
    for tensor, group in itertools.groupby(names, _tensor):
        members = list(group)
        if not tensor:
            found += [(name, ()) for name in members]
        elif whole := _ALL.fullmatch(members[0]):
            found.append((tensor, tuple(int(size.split(":")[1]) for size in whole["sizes"].split(","))))
        else:
            last = members[-1].removesuffix("]").rpartition("[")[2]
            found.append((tensor, tuple(int(place) + 1 for place in last.split(","))))
    return found


def _tensor(name: str) -> str:
    match = _ONE.fullmatch(name) or _ALL.fullmatch(name)
    return match["name"] if match else ""


def _cut(name: str, shape: tuple[int, ...], patches: int) -> tuple[list[str], NDArray[np.int32]]:
    """The parts' names, and for each of the tensor's values, the last dimension's first, its part."""
    # As many parts of a vector as of an image.
    counts = [patches] * _CUT_DIMENSIONS if len(shape) >= _CUT_DIMENSIONS else [patches**_CUT_DIMENSIONS]
    cut, rest = shape[:_CUT_DIMENSIONS], shape[_CUT_DIMENSIONS:]
    edges = [_edges(size, count) for size, count in zip(cut, counts, strict=True)]
    names = [
        f"{name}[{','.join(itertools.starmap(_span, spans))}]"
        for spans in itertools.product(*(itertools.pairwise(edge) for edge in edges))
    ]
    places = [np.searchsorted(edge, np.arange(edge[-1]), side="right") - 1 for edge in edges]
    grid = np.ravel_multi_index(np.meshgrid(*places, indexing="ij"), [len(edge) - 1 for edge in edges])
    return names, np.repeat(grid.ravel().astype(np.int32), math.prod(rest))


def _edges(size: int, parts: int) -> list[int]:
    parts = min(size, parts)
    return [size * part // parts for part in range(parts + 1)]


def _span(first: int, end: int) -> str:
    return str(first) if end == first + 1 else f"{first}:{end}"
