"""In which order parts and rows are read, and by which of several readers: decided by numbers alone."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.datasets.table import Part


@dataclass(frozen=True, slots=True)
class Shuffle:
    """An order of the rows for each epoch.

    Parts are put in an order drawn for (seed, epoch). Their rows, in that order, are cut into windows of
    `window_rows`, and each window is put in an order drawn for (seed, epoch, window). So a row can come
    anywhere in an epoch, and rows of one part come near each other: the larger the window, the less. The
    orders are `torch.randperm`'s, the same wherever the version of PyTorch is.
    """

    seed: int
    window_rows: int = 1 << 17


@dataclass(frozen=True, slots=True)
class Shard:
    """Which of `count` readers that share the rows of each epoch this one is, from 0."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"there is no shard {self.index} of {self.count}")


def parts_of(parts: Sequence[Part], shuffle: Shuffle | None, shard: Shard, epoch: int) -> list[Part]:
    """What a shard reads in an epoch, in its order.

    Every part is some shard's, and no part two shards'. Parts go, in the epoch's order, to the shard with
    the fewest rows so far, so that shards differ by no more rows than the largest part has. Where there are
    fewer parts than shards, each is cut into one piece for each shard.
    """
    if len(parts) < shard.count:
        parts = [piece for part in parts for piece in _pieces(part, shard.count)]
    if shuffle is not None:
        order = permutation(len(parts), shuffle.seed, epoch)
        parts = [parts[index] for index in order.tolist()]
    rows = [0] * shard.count
    mine = []
    for part in parts:
        lightest = rows.index(min(rows))
        rows[lightest] += len(part)
        if lightest == shard.index:
            mine.append(part)
    return mine


def permutation(size: int, *path: int) -> Tensor:
    """Draw an order of `size` things for a path of numbers: (seed, epoch), (seed, epoch, window)."""
    digest = hashlib.sha256("/".join(map(str, path)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return torch.randperm(size, generator=generator)


def _pieces(part: Part, count: int) -> list[Part]:
    ends = [part.start + len(part) * index // count for index in range(count + 1)]
    pieces = [Part(part.file, part.group, start, stop) for start, stop in itertools.pairwise(ends)]
    return [piece for piece in pieces if len(piece)]
