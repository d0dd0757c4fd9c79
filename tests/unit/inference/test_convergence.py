"""Doing what comes next brings every deployment to rest, and what has traffic stays loaded on the way."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from headrace.inference.domain.analysis import Observed, Outcomes, judge
from headrace.inference.domain.convergence import (
    DRAIN,
    Action,
    Begin,
    Forget,
    GiveUp,
    Judge,
    Load,
    Record,
    Situation,
    Start,
    Unload,
    next_action,
)
from headrace.inference.domain.deployments import Deployment, ServedVersion
from headrace.inference.domain.rollouts import (
    Plan,
    Rollout,
    RolloutState,
    advance,
    load_failed,
    loaded,
    process_died,
    superseded,
    weights,
)
from headrace.inference.domain.serving import DEFAULTS, Serving

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BROKEN = 13
REFUSED = Serving(instances=64)
FINE = Observed(Outcomes(50))


def a_version(number: int) -> ServedVersion:
    return ServedVersion("m", number, "file:///m", "", (), (), (), b"", "")


class World:
    """A deployment, and a Triton that does what it is told; version 13 never loads, nor do 64 instances."""

    def __init__(self) -> None:
        self.now = NOW
        plan = Plan((10, 100), timedelta(seconds=1))
        self.deployment = Deployment("live", "m", plan, NOW, NOW)
        self.versions: dict[int, ServedVersion] = {}
        self.tried: set[int] = set()
        self.triton: frozenset[int] = frozenset()
        self.refused: Serving | None = None
        self.gone = False

    def situation(self) -> Situation:
        return Situation(
            self.deployment,
            self.versions,
            frozenset(self.tried),
            self.triton,
            self.triton,
            refused=self.refused,
        )

    def step(self) -> Action | None:
        self.now += timedelta(milliseconds=500)
        action = next_action(self.situation(), self.now)
        match action:
            case Begin(version):
                self.begin(version.version)
            case Load(versions, serving):
                self.load({version.version for version in versions}, serving)
            case Unload():
                self.triton = frozenset()
            case Forget():
                self.gone = True
            case Record(found):
                self.deployment = replace(self.deployment, loaded=found)
            case Start(rollout):
                self.put(loaded(rollout, self.deployment.plan, {}, self.now))
            case Judge(rollout):
                plan = self.deployment.plan
                judgement = judge(
                    plan.analysis,
                    len(plan.steps),
                    FINE,
                    FINE,
                    held=self.now - rollout.step_time,
                    hold=plan.hold,
                    now=self.now,
                )
                self.put(advance(rollout, plan, judgement if rollout.from_version else None, {}, self.now))
            case None:
                pass
        return action

    def begin(self, version: int) -> None:
        current = self.deployment.rollout
        if current is not None and not current.state.ended:
            self.put(superseded(current, version, self.now))
            self.tried.discard(current.to_version)
        rollout = Rollout(
            str(version),
            "live",
            self.deployment.stable,
            version,
            RolloutState.LOADING,
            "",
            self.now,
            self.now,
        )
        self.tried.add(version)
        self.deployment = replace(self.deployment, rollout=rollout)

    def load(self, versions: set[int], serving: Serving) -> None:
        if serving == REFUSED:
            self.refused = serving
            return
        if BROKEN not in versions:
            self.triton = frozenset(versions)
            self.deployment = replace(self.deployment, served=serving)
            return
        rollout = self.deployment.rollout
        assert rollout is not None
        self.put(load_failed(rollout, "it is broken", self.now))

    def put(self, rollout: Rollout) -> None:
        self.deployment = replace(self.deployment, rollout=rollout, traffic=weights(rollout))

    def settle(self, *, answering: bool) -> None:
        """Step until nothing is left to do; what has traffic must not be unloaded on the way."""
        idle = 0
        for _ in range(200):
            had_traffic = set(self.deployment.traffic) & self.triton if answering else set()
            action = self.step()
            assert had_traffic & set(self.deployment.traffic) <= self.triton, action
            # An old version is unloaded a while after its last request.
            idle = idle + 1 if action is None or (isinstance(action, Judge) and self.is_holding()) else 0
            if idle > DRAIN / timedelta(milliseconds=500) + 2:
                return
        raise AssertionError("it never comes to rest")

    def is_holding(self) -> bool:
        rollout = self.deployment.rollout
        return rollout is not None and rollout.state.ended


@given(st.lists(st.sampled_from([*range(1, 9), BROKEN]), unique=True, min_size=1, max_size=6), st.data())
def test_promotions_at_any_time_end_with_the_newest_that_works(
    promoted: list[int], data: st.DataObject
) -> None:
    world = World()
    for number in promoted:
        world.versions[number] = a_version(number)
        for _ in range(data.draw(st.integers(0, 8))):
            world.step()
    world.settle(answering=True)
    deployment = world.deployment
    working = set(promoted) - {BROKEN}
    assert deployment.traffic == ({max(working): 100} if working else {})
    assert world.triton == set(deployment.traffic) == deployment.loaded


@given(
    st.lists(st.sampled_from([Serving(instances=2), Serving(max_batch_size=8), REFUSED]), max_size=4),
    st.data(),
)
def test_settings_may_change_at_any_time_and_those_that_do_not_load_hold_up_no_rollout(
    changes: list[Serving], data: st.DataObject
) -> None:
    world = World()
    world.versions[1] = a_version(1)
    for serving in changes:
        for _ in range(data.draw(st.integers(0, 8))):
            world.step()
        world.deployment = replace(world.deployment, serving=serving)
    world.versions[2] = a_version(2)
    world.settle(answering=True)
    deployment = world.deployment
    assert deployment.traffic == {2: 100}
    assert deployment.served == deployment.serving or deployment.serving == REFUSED
    assert deployment.served != REFUSED


@given(st.integers(0, 12))
def test_a_triton_that_forgot_everything_gets_it_back(steps: int) -> None:
    world = World()
    world.versions[1] = a_version(1)
    world.settle(answering=True)
    world.versions[2] = a_version(2)
    for _ in range(steps):
        world.step()
    world.triton = frozenset()
    world.settle(answering=False)
    assert world.deployment.traffic == {2: 100}
    assert world.triton == {2}


def test_a_version_that_died_is_loaded_anew_and_not_where_an_old_one_can_answer() -> None:
    world = World()
    world.versions[1] = a_version(1)
    world.settle(answering=True)
    died = replace(world.situation(), loaded=frozenset(), died=frozenset({1}))
    assert next_action(died, world.now) == Load((world.versions[1],), DEFAULTS)

    world.versions[2] = a_version(2)
    while set(world.deployment.traffic) != {1, 2}:
        world.step()
    rollout = world.deployment.rollout
    assert rollout is not None
    died = replace(world.situation(), loaded=frozenset({1}), died=frozenset({2}))
    assert next_action(died, world.now) == GiveUp(rollout)
    ended = process_died(rollout, world.now)
    assert (weights(ended), ended.state) == ({1: 100}, RolloutState.ROLLED_BACK)


def test_a_deleted_deployment_is_unloaded_after_its_last_requests_and_forgotten() -> None:
    world = World()
    world.versions[1] = a_version(1)
    world.settle(answering=True)
    world.deployment = replace(world.deployment, deleted=True, update_time=world.now)
    assert world.step() is None
    while not world.gone:
        assert world.now - world.deployment.update_time < 2 * DRAIN
        world.step()
    assert world.triton == frozenset()


def test_what_one_server_alone_has_is_unloaded() -> None:
    """Of several servers one may have been away when a version was unloaded."""
    world = World()
    world.versions[1] = a_version(1)
    world.settle(answering=True)
    extra = replace(world.situation(), anywhere=frozenset({1, 2}))
    later = world.now + 2 * DRAIN
    assert next_action(extra, later) == Load((world.versions[1],), DEFAULTS)
    world.deployment = replace(world.deployment, deleted=True, update_time=world.now)
    gone = replace(world.situation(), loaded=frozenset(), anywhere=frozenset({1}))
    assert next_action(gone, later) == Unload()


def test_a_rollout_that_is_paused_while_it_loads_gets_no_traffic_until_it_is_resumed() -> None:
    world = World()
    world.versions[1] = a_version(1)
    world.settle(answering=True)
    world.versions[2] = a_version(2)
    world.step()
    rollout = world.deployment.rollout
    assert rollout is not None
    world.put(replace(rollout, paused=True))
    world.settle(answering=True)
    assert world.deployment.traffic == {1: 100}
    assert world.triton == {1, 2}
    world.put(replace(rollout, paused=False))
    world.settle(answering=True)
    assert world.deployment.traffic == {2: 100}
