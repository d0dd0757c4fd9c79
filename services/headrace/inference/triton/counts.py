"""Counts of several servers, which go on where one of those begins anew or is away."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

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


def _sum(one: Outcomes, other: Outcomes) -> Outcomes:
    return Outcomes(one.succeeded + other.succeeded, one.failed + other.failed)
