"""Counts of several servers, which go on where one of those begins anew or is away."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from headrace.inference.domain.analysis import Outcomes


class Counts:
    """Answers and failures of one deployment's versions.

    A server counts from zero when it was restarted or has loaded the deployment anew, and one that is away
    says nothing: neither takes back what was counted.
    """

    def __init__(self) -> None:
        # By server.
        self._last: dict[object, Mapping[int, Outcomes]] = {}
        # By version: of what servers counted before they began anew.
        self._before: defaultdict[int, Outcomes] = defaultdict(Outcomes)

    def heard(self, server: object, counts: Mapping[int, Outcomes]) -> None:
        """A server's counts as it says them now."""
        for version, last in self._last.get(server, {}).items():
            now = counts.get(version, Outcomes())
            if now.succeeded < last.succeeded or now.failed < last.failed:
                self._before[version] = _sum(self._before[version], last)
        self._last[server] = counts

    def total(self) -> dict[int, Outcomes]:
        """Of all servers together, by version."""
        total = dict(self._before)
        for counts in self._last.values():
            for version, count in counts.items():
                total[version] = _sum(total.get(version, Outcomes()), count)
        return total


@dataclass(frozen=True, slots=True)
class ServerWork:
    """Of one deployment on one server since it was loaded.

    Requests, seconds that they waited for a process, seconds that processes worked.
    """

    requests: int
    queued: float
    busy: float


class Work:
    """What servers have done for each deployment since they were first heard; it never goes back."""

    def __init__(self) -> None:
        self._last: dict[int, Mapping[str, ServerWork]] = {}
        self._requests: Counter[str] = Counter()
        self._queued: defaultdict[str, float] = defaultdict(float)
        self._busy: defaultdict[str, float] = defaultdict(float)

    def heard(self, server: int, work: Mapping[str, ServerWork]) -> None:
        """A server's counts as it says them now."""
        for name, now in work.items():
            last = self._last.get(server, {}).get(name)
            if last is None or now.requests < last.requests:
                # It was loaded anew.
                last = ServerWork(0, 0.0, 0.0)
            self._requests[name] += now.requests - last.requests
            self._queued[name] += max(0.0, now.queued - last.queued)
            self._busy[name] += max(0.0, now.busy - last.busy)
        self._last[server] = work

    def total(self) -> tuple[dict[str, int], dict[str, float], dict[str, float]]:
        """Of all servers together, by deployment: requests, seconds waited, seconds of work."""
        return dict(self._requests), dict(self._queued), dict(self._busy)


def _sum(one: Outcomes, other: Outcomes) -> Outcomes:
    return Outcomes(one.succeeded + other.succeeded, one.failed + other.failed)
