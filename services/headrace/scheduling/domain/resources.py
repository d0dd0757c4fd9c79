"""Amounts of what a node has and a job needs."""

from __future__ import annotations

from dataclasses import dataclass

MILLIS_PER_CORE = 1000
GIBIBYTE = 1 << 30
MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True, order=True)
class Resources:
    """GPUs, thousandths of cores and bytes: whole numbers, so that sums never drift.

    The order of the fields is the order of scarcity: it sorts nodes for placement.
    """

    gpu: int = 0
    cpu_millis: int = 0
    memory: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.gpu + other.gpu, self.cpu_millis + other.cpu_millis, self.memory + other.memory)

    def __sub__(self, other: Resources) -> Resources:
        return Resources(self.gpu - other.gpu, self.cpu_millis - other.cpu_millis, self.memory - other.memory)

    def fits(self, room: Resources) -> bool:
        """Whether `room` has at least this much of everything."""
        return self.gpu <= room.gpu and self.cpu_millis <= room.cpu_millis and self.memory <= room.memory

    @property
    def cpu(self) -> float:
        """Cores."""
        return self.cpu_millis / MILLIS_PER_CORE

    def __str__(self) -> str:
        parts = [f"{self.cpu:g} cores", _bytes_text(self.memory)]
        if self.gpu:
            parts.append(f"{self.gpu} GPU")
        return ", ".join(parts)


NOTHING = Resources()


def from_cores(cpu: float, memory: int, gpu: int) -> Resources:
    """Resources of a number of cores, which is rounded to thousandths."""
    return Resources(gpu, round(cpu * MILLIS_PER_CORE), memory)


def shortage(need: Resources, free: Resources, capacity: Resources) -> str:
    """What `free` lacks, for people: "needs 4 cores, 1 free of 2"; empty where nothing is short."""
    short = []
    if need.gpu > free.gpu:
        short.append(f"needs {need.gpu} GPU, {max(free.gpu, 0)} free of {capacity.gpu}")
    if need.cpu_millis > free.cpu_millis:
        short.append(f"needs {need.cpu:g} cores, {max(free.cpu, 0.0):g} free of {capacity.cpu:g}")
    if need.memory > free.memory:
        short.append(
            f"needs {_bytes_text(need.memory)} of memory, "
            f"{_bytes_text(max(free.memory, 0))} free of {_bytes_text(capacity.memory)}"
        )
    return "; ".join(short)


def _bytes_text(count: int) -> str:
    if count >= GIBIBYTE:
        return f"{count / GIBIBYTE:.4g} GiB"
    return f"{count / MEBIBYTE:.4g} MiB"
