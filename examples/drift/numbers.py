"""What was measured, in tables."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from examples.drift.observed import Answers, largest_index
from examples.shared.stages import console
from rich.table import Table

from headrace.api.inference.v1.drift_pb2 import DriftFinding, DriftWindow
from headrace.api.registry.v1.registry_pb2 import ModelVersion
from headrace.cli.plain import plain


@dataclass(frozen=True)
class Phase:
    """How things stood in one part of the story."""

    scanner: str
    version: int
    dataset_version: int
    answers: Answers
    window: DriftWindow

    @classmethod
    def of(cls, scanner: str, version: ModelVersion, answers: Answers, window: DriftWindow) -> Self:
        """As it was while the version answered."""
        return cls(scanner, version.version, version.lineage.dataset_version.version, answers, window)

    @property
    def drifting(self) -> list[DriftFinding]:
        """What drifted, the worst first."""
        return drifting(self.window)

    @property
    def largest_index(self) -> float:
        """The largest stability index of the columns."""
        return largest_index(self.window)


def drifting(window: DriftWindow) -> list[DriftFinding]:
    """What drifts in a window, the worst first."""
    return sorted((one for one in window.findings if one.drifts), key=lambda one: -one.psi)


@dataclass
class Clock:
    """What came when, in seconds since the scanner was replaced."""

    began: float = field(default_factory=time.monotonic)
    marks: list[tuple[str, float]] = field(default_factory=list)

    def mark(self, what: str) -> None:
        """It has come now."""
        seconds = time.monotonic() - self.began
        self.marks.append((what, seconds))
        console.print(f"   {what} {seconds:.1f} s after the replacement")


def _table(first: str, *numbers: str) -> Table:
    drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    drawn.add_column(f"   {first}")
    for name in numbers:
        drawn.add_column(name, justify="right")
    return drawn


def findings_table(window: DriftWindow) -> Table:
    """The columns that drift, with their statistics."""
    drawn = _table("column", "test", "statistic", "p, adjusted", "index")
    for one in drifting(window):
        test = str(plain(one)["test"]).replace("_", " ").lower()
        drawn.add_row(
            f"   {one.column}", test, f"{one.statistic:.3f}", f"{one.p_value:.1e}", f"{one.psi:.2f}"
        )
    return drawn


def phases_table(phases: Sequence[Phase]) -> Table:
    """The parts of the story, one under the other."""
    drawn = _table("scanner", "version", "learnt from", "labels", "accuracy", "drifting", "index")
    for phase in phases:
        drawn.add_row(
            f"   {phase.scanner}",
            str(phase.version),
            f"version {phase.dataset_version}",
            str(phase.answers.labelled),
            f"{phase.answers.accuracy:.3f}",
            str(len(phase.drifting)),
            f"{phase.largest_index:.2f}",
        )
    return drawn


def times_table(clock: Clock) -> Table:
    """What came when."""
    drawn = _table("since the scanner was replaced", "seconds")
    for what, seconds in clock.marks:
        drawn.add_row(f"   {what}", f"{seconds:.1f}")
    return drawn
