"""Stages of a story: each with a heading, its time, and what was checked in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text

console = Console(highlight=False)


@dataclass
class Stages:
    """Collects times and checks; a story succeeds only if every check did."""

    times: list[tuple[str, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    # The stage that an error ended.
    broken: str = ""
    started: float = field(default_factory=time.monotonic)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Print the heading, run the block, note its time."""
        console.print(Text(f"\n{len(self.times) + 1}. {name}", "bold cyan"))
        began = time.monotonic()
        try:
            yield
        except Exception:
            self.broken = self.broken or name
            raise
        self.times.append((name, time.monotonic() - began))

    def check(self, claim: str, *, holds: bool) -> None:
        """Print whether a claim holds, and remember where it does not."""
        console.print(Text(f"   {'✓' if holds else '✗'} {claim}", "green" if holds else "bold red"))
        if not holds:
            self.failures.append(claim)

    def table(self) -> Table:
        """Every stage with its time."""
        drawn = Table(box=None, pad_edge=False, header_style="dim")
        drawn.add_column("stage")
        drawn.add_column("seconds", justify="right")
        for name, seconds in self.times:
            drawn.add_row(name, f"{seconds:.1f}")
        drawn.add_row(Text("all", "bold"), Text(f"{time.monotonic() - self.started:.1f}", "bold"))
        return drawn
