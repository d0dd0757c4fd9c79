"""What a deployment needs next, from what is wanted and what is.

A pure function of the stored state, what Triton says it has loaded, and the time: the reconciler carries out
what it answers, and asks again. Nothing here remembers anything, so that a restart at any moment goes on
where it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from headrace.inference.domain.deployments import Deployment, ServedVersion
from headrace.inference.domain.rollouts import Rollout, RolloutState, next_rollout, wanted_versions
from headrace.inference.domain.serving import Serving

# Requests that were routed to a version just before it lost its traffic are still being answered.
DRAIN = timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class Situation:
    """A deployment as stored, its model's versions, those tried before, those that Triton has loaded.

    `loaded`: on every server that answers; `anywhere`: on at least one of them; `died`: those of them whose
    process died on one. `refused`: settings with which they did not load.
    """

    deployment: Deployment
    versions: Mapping[int, ServedVersion]
    tried: frozenset[int]
    loaded: frozenset[int]
    anywhere: frozenset[int]
    died: frozenset[int] = frozenset()
    refused: Serving | None = None


@dataclass(frozen=True, slots=True)
class Begin:
    """Start a rollout of this version; one in progress gives way to it."""

    version: ServedVersion


@dataclass(frozen=True, slots=True)
class Load:
    """Make exactly these versions answer, in order of their numbers, served so."""

    versions: tuple[ServedVersion, ...]
    serving: Serving


@dataclass(frozen=True, slots=True)
class Unload:
    """Nothing of it is wanted any more."""


@dataclass(frozen=True, slots=True)
class Forget:
    """It was deleted, and Triton has nothing of it: remove it."""


@dataclass(frozen=True, slots=True)
class Record:
    """Triton's loaded versions are not those stored."""

    loaded: frozenset[int]


@dataclass(frozen=True, slots=True)
class Start:
    """The rollout's version is loaded: give it its first share."""

    rollout: Rollout


@dataclass(frozen=True, slots=True)
class Judge:
    """The rollout is at a step: see how the new version does."""

    rollout: Rollout


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The process of the rollout's version died: give its traffic back to the old one."""

    rollout: Rollout


Action = Begin | Load | Unload | Forget | Record | Start | Judge | GiveUp


def next_action(situation: Situation, now: datetime) -> Action | None:
    """The next thing to do; None where everything is as it should be."""
    deployment = situation.deployment
    if deployment.deleted:
        if now - deployment.update_time < DRAIN:
            return None
        return Unload() if situation.anywhere else Forget()
    target = next_rollout(
        list(situation.versions), deployment.stable, deployment.rollout, rolled_out=situation.tried
    )
    if target is not None:
        return Begin(situation.versions[target])
    rollout = deployment.rollout
    if (
        rollout is not None
        and rollout.state.judged
        and rollout.from_version
        and rollout.to_version in situation.died
    ):
        # Loaded anew it would hide how it failed, until the next step.
        return GiveUp(rollout)
    wanted = wanted_versions(deployment.traffic, rollout) & set(situation.versions)
    if (action := _loading(situation, wanted)) is not None:
        return action
    if rollout is not None and rollout.state is RolloutState.LOADING:
        return None if rollout.paused else Start(rollout)
    if rollout is not None and rollout.state.judged:
        return Judge(rollout)
    if wanted != situation.anywhere and _drained(rollout, now):
        return Load(_in_order(situation, wanted), deployment.served) if wanted else Unload()
    return None


def _loading(situation: Situation, wanted: frozenset[int] | set[int]) -> Load | Record | None:
    """What brings the wanted versions to answer, and then all of them to be served as the settings say."""
    deployment, loaded = situation.deployment, situation.loaded
    if not wanted <= loaded:
        # With settings that are known to work: a version is not to fail for new ones.
        return Load(_in_order(situation, wanted), deployment.served)
    if loaded != deployment.loaded:
        return Record(loaded)
    if wanted and deployment.serving not in (deployment.served, situation.refused):
        # Those that are still drained, too.
        return Load(_in_order(situation, loaded & set(situation.versions)), deployment.serving)
    return None


def _in_order(situation: Situation, numbers: Iterable[int]) -> tuple[ServedVersion, ...]:
    return tuple(situation.versions[number] for number in sorted(numbers))


def _drained(rollout: Rollout | None, now: datetime) -> bool:
    return rollout is None or rollout.end_time is None or now - rollout.end_time >= DRAIN
