"""Runs: one attempt of a job on this node.

STARTING ──▶ RUNNING ──▶ REGISTERING ──▶ SUCCEEDED
    │           │             │
    └───────────┴─────────────┴──▶ FAILED, STOPPED
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

LAST_LINES = 20


class RunState(enum.StrEnum):
    """Where a run is."""

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    REGISTERING = "REGISTERING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens."""
        return self in {RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED}


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt of a job."""

    id: str
    job: str
    attempt: int
    pipeline: str
    node: str
    traceparent: str
    start_time: datetime
    state: RunState = RunState.STARTING
    reason: str = ""
    message: str = ""
    epoch: int = 0
    epochs: int = 0
    loss: float = 0.0
    remaining: timedelta = timedelta(0)
    resumed_epoch: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    model_version: int = 0
    end_time: datetime | None = None


def run_id(job: str, attempt: int) -> str:
    """A run's id."""
    return f"{job}-{attempt}"


def failed(run: Run, reason: str, message: str, now: datetime) -> Run:
    """The run has failed."""
    return replace(run, state=RunState.FAILED, reason=reason, message=message, end_time=now)


def stopped(run: Run, message: str, now: datetime) -> Run:
    """The run was stopped, or vanished with its agent."""
    return replace(run, state=RunState.STOPPED, message=message, end_time=now)


def exit_text(code: int, lines: Sequence[str]) -> str:
    """How a process ended, with its last words."""
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    said = "\n".join(lines[-LAST_LINES:])
    return f"the run ended with {how}" + (f"; its last lines:\n{said}" if said else "")
