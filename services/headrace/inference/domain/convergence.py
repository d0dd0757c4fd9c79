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
from headrace.inference.domain.scaling import ALL_SERVERS, Scale
from headrace.inference.domain.serving import Serving

# Requests that were routed to a version just before it lost its traffic are still being answered.
DRAIN = timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class Situation:
    """A deployment as stored, its model's versions, those tried before, those that Triton has loaded.

    `loaded`: on every server that answers of those that requests go to; `away`: none of those answers.
    `arriving`: on every one that answers of those that it is to be on; `leaving`: on some server that it is
    to be on no more, nor do requests go there. `anywhere`: on at least one server; `died`: those of them
    whose process died on one. `refused`: settings with which they did not load.
    """

    deployment: Deployment
    versions: Mapping[int, ServedVersion]
    tried: frozenset[int]
    loaded: frozenset[int]
    anywhere: frozenset[int]
    died: frozenset[int] = frozenset()
    refused: Serving | None = None
    arriving: frozenset[int] = frozenset()
    leaving: bool = False
    away: bool = False


@dataclass(frozen=True, slots=True)
class Begin:
    """Start a rollout of this version; one in progress gives way to it."""

    version: ServedVersion


@dataclass(frozen=True, slots=True)
class Load:
    """Make exactly these versions answer there, in order of their numbers, served so."""

    versions: tuple[ServedVersion, ...]
    serving: Serving
    on: Scale = ALL_SERVERS


@dataclass(frozen=True, slots=True)
class Place:
    """It is where it is to be: requests go there from now on."""

    scale: Scale


@dataclass(frozen=True, slots=True)
class Leave:
    """Requests have been going elsewhere for long enough: unload it from all other servers."""


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


Action = Begin | Load | Place | Leave | Unload | Forget | Record | Start | Judge | GiveUp


def next_action(situation: Situation, now: datetime) -> Action | None:
    """The next thing to do; None where everything is as it should be."""
    deployment = situation.deployment
    if deployment.deleted:
        return _going(situation, now)
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
    if not (deployment.cold or situation.away or wanted <= situation.loaded):
        # First of all where requests go, with settings that are known to work: a version is not to fail for
        # new ones.
        return _load(situation, wanted, deployment.served)
    if (action := _placing(situation, wanted)) is not None:
        return action
    if deployment.cold:
        # What is being rolled out waits until it is to be somewhere.
        return Unload() if situation.anywhere and _settled(deployment, now) else None
    if (action := _loading(situation, wanted)) is not None:
        return action
    if rollout is not None and rollout.state is RolloutState.LOADING:
        return None if rollout.paused else Start(rollout)
    if rollout is not None and rollout.state.judged:
        return Judge(rollout)
    return _tidying(situation, wanted, now)


def _going(situation: Situation, now: datetime) -> Unload | Forget | None:
    """What takes a deleted deployment away."""
    if now - situation.deployment.update_time < DRAIN:
        return None
    return Unload() if situation.anywhere else Forget()


def _placing(situation: Situation, wanted: frozenset[int] | set[int]) -> Load | Place | Record | None:
    """What brings it to the servers that it is to be on, and then requests to it."""
    deployment = situation.deployment
    scale = deployment.scale
    if scale.replicas == 0:
        if deployment.placed.replicas:
            return Place(scale)
        return Record(frozenset()) if deployment.loaded else None
    placed, rollout = deployment.placed, deployment.rollout
    if (scale.replicas, scale.first) == (placed.replicas, placed.first):
        return None
    if (
        rollout is not None
        and rollout.state is RolloutState.PROGRESSING
        and not situation.away
        and placed.replicas
    ):
        # Who is judged is not kept waiting for servers to load it.
        return None
    if not wanted <= situation.arriving:
        return _load(situation, wanted, deployment.served, scale)
    return Place(scale)


def _tidying(
    situation: Situation, wanted: frozenset[int] | set[int], now: datetime
) -> Load | Leave | Unload | None:
    """What takes away that no request asks for any more."""
    deployment = situation.deployment
    if situation.leaving:
        return Leave() if _settled(deployment, now) else None
    if wanted != situation.anywhere and _drained(deployment.rollout, now):
        return _load(situation, wanted, deployment.served) if wanted else Unload()
    return None


def _loading(situation: Situation, wanted: frozenset[int] | set[int]) -> Load | Record | None:
    """What brings the wanted versions to answer, and then all of them to be served as the settings say."""
    deployment, loaded = situation.deployment, situation.loaded
    if loaded != deployment.loaded:
        return Record(loaded)
    serving = deployment.wanted_serving
    if wanted and serving not in (deployment.served, situation.refused):
        # Those that are still drained, too.
        return _load(situation, loaded & set(situation.versions), serving)
    return None


def _load(situation: Situation, numbers: Iterable[int], serving: Serving, on: Scale | None = None) -> Load:
    return Load(_in_order(situation, numbers), serving, on or situation.deployment.placed)


def _in_order(situation: Situation, numbers: Iterable[int]) -> tuple[ServedVersion, ...]:
    return tuple(situation.versions[number] for number in sorted(numbers))


def _settled(deployment: Deployment, now: datetime) -> bool:
    return deployment.placed_time is None or now - deployment.placed_time >= DRAIN


def _drained(rollout: Rollout | None, now: datetime) -> bool:
    return rollout is None or rollout.end_time is None or now - rollout.end_time >= DRAIN
