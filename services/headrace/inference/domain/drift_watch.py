"""A deployment's windows one after the other, and the episodes in which it drifts."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from headrace.inference.domain.drift import DriftRules, Finding

NOTHING_COMPARED: Final = (
    "nothing could be compared: the model's inputs are no columns of its dataset, as those of images are "
    "not, or its dataset version has too few rows"
)


class EndReason(enum.StrEnum):
    """Why an episode is over."""

    # As many windows as began it did not drift.
    RECOVERED = "RECOVERED"
    # Another version answers now, or none.
    REPLACED = "REPLACED"


@dataclass(frozen=True, slots=True)
class WindowResult:
    """What a window of one version's requests came to; it ends with the newest request that was judged."""

    version: int
    begin: datetime
    end: datetime
    requests: int
    rows: int
    findings: tuple[Finding, ...]

    @property
    def drifting(self) -> tuple[str, ...]:
        """The columns that drift, each once."""
        return tuple(dict.fromkeys(finding.column for finding in self.findings if finding.drifts))


@dataclass(frozen=True, slots=True)
class Episode:
    """A time in which a deployment's version was asked, or answered, other than what it was trained on."""

    id: str
    deployment: str
    model: str
    version: int
    dataset: str
    dataset_version: int
    columns: tuple[str, ...]
    begin_time: datetime
    end_time: datetime | None = None
    end_reason: EndReason | None = None


@dataclass(frozen=True, slots=True)
class Watch:
    """How far a version is watched: from `since` on requests are new.

    `drifting` and `calm` count the last windows in a row in which something could be compared, one of them
    being 0. `message` says for people what keeps it from being judged, if anything does. `revision` is that
    of what is stored, 0 where nothing is yet: whoever stores what follows names the one that it saw.
    """

    deployment: str
    version: int
    since: datetime
    drifting: int = 0
    calm: int = 0
    episode: str = ""
    message: str = ""
    revision: int = 0


def watched(watch: Watch, rules: DriftRules, result: WindowResult, new_id: Callable[[], str]) -> Watch:
    """After one more window: an episode begins, goes on or is over, or there is still none.

    One in which nothing could be compared says neither that it drifts nor that it does not.
    """
    if not result.findings:
        return replace(watch, since=result.end, message=NOTHING_COMPARED)
    drifting, calm = (watch.drifting + 1, 0) if result.drifting else (0, watch.calm + 1)
    episode = watch.episode
    if not episode and drifting >= rules.windows:
        episode = new_id()
    elif episode and calm >= rules.windows:
        episode = ""
    return replace(watch, since=result.end, drifting=drifting, calm=calm, episode=episode, message="")
