"""When a measurement under load has come to rest, and what it then says.

Load is kept up in windows of equal length. The measurement is over when three in a row agree, as NVIDIA's
perf_analyzer has it, and when enough requests were slower than the percentile to tell where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from headrace.inference.domain.tuning import Measurement, Trial

AGREEING: Final = 3
MOST_WINDOWS: Final = 6
# Of the three windows' mean. A high percentile varies more than a rate.
THROUGHPUT_SPREAD: Final = 0.10
LATENCY_SPREAD: Final = 0.20
# Slower than the percentile, in the three windows together: for a p99 a thousand requests.
BEYOND: Final = 10


@dataclass(frozen=True, slots=True)
class Window:
    """Seconds that each answered request took, how many failed, and for how long load was kept up."""

    seconds: Sequence[float]
    failed: int
    elapsed: float

    @property
    def throughput(self) -> float:
        """Answers a second."""
        return len(self.seconds) / self.elapsed


def quantile(seconds: Sequence[float], share: float) -> float:
    """The smallest of these within which that share of them is; 0 of none."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def at_rest(windows: Sequence[Window], share: float) -> bool:
    """Whether the last three windows agree, and hold enough requests for the percentile."""
    last = windows[-AGREEING:]
    if len(last) < AGREEING or (1 - share) * sum(len(window.seconds) for window in last) < BEYOND:
        return False
    return _agree([window.throughput for window in last], THROUGHPUT_SPREAD) and _agree(
        [quantile(window.seconds, share) for window in last], LATENCY_SPREAD
    )


def measured(trial: Trial, windows: Sequence[Window], share: float) -> Measurement:
    """The last three windows as one."""
    last = windows[-AGREEING:]
    seconds = [taken for window in last for taken in window.seconds]
    return Measurement(
        trial=trial,
        throughput=len(seconds) / sum(window.elapsed for window in last),
        p50=quantile(seconds, 0.5),
        latency=quantile(seconds, share),
        answered=len(seconds),
        failed=sum(window.failed for window in windows),
        stable=at_rest(windows, share),
    )


def _agree(values: Sequence[float], spread: float) -> bool:
    mean = sum(values) / len(values)
    return all(abs(value - mean) <= spread * mean for value in values)
