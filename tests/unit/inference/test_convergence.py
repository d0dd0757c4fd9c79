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
    Leave,
    Load,
    Place,
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
from headrace.inference.domain.scaling import ALL_SERVERS, Scale
from headrace.inference.domain.serving import DEFAULTS, Serving
from headrace.inference.use_cases.ports import Loaded

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BROKEN = 13
SERVERS = 3
REFUSED = Serving(instances=64)
FINE = Observed(Outcomes(50))


def a_version(number: int) -> ServedVersion:
    return ServedVersion("m", number, "file:///m", "", (), (), (), b"", "")


class World:
    """A deployment, and Tritons that do what they are told; version 13 never loads, nor do 64 instances."""

    def __init__(self) -> None:
        self.now = NOW
        plan = Plan((10, 100), timedelta(seconds=1))
        self.deployment = Deployment("live", "m", plan, NOW, NOW)
        self.versions: dict[int, ServedVersion] = {}
        self.tried: set[int] = set()
        self.tritons: list[frozenset[int]] = [frozenset()] * SERVERS
        self.refused: Serving | None = None
        self.gone = False

    @property
    def triton(self) -> frozenset[int]:
        """Versions that answer wherever requests go."""
        return Loaded(tuple(self.tritons)).on(self.deployment.placed.servers(SERVERS))

    def situation(self) -> Situation:
        found = Loaded(tuple(self.tritons))
        placed, arriving = (
            scale.servers(SERVERS) for scale in (self.deployment.placed, self.deployment.scale)
        )
        return Situation(
            self.deployment,
            self.versions,
            frozenset(self.tried),
            found.on(placed),
            found.anywhere,
            refused=self.refused,
            arriving=found.on(arriving),
            leaving=found.outside(placed | arriving),
        )

    def step(self) -> Action | None:
        self.now += timedelta(milliseconds=500)
        action = next_action(self.situation(), self.now)
        match action:
            case Begin(version):
                self.begin(version.version)
            case Load(versions, serving, on):
                self.load({version.version for version in versions}, serving, on)
            case Place() | Leave() | Unload():
                self.move(action)
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

    def move(self, action: Place | Leave | Unload) -> None:
        kept: frozenset[int] = frozenset()
        match action:
            case Place(scale):
                self.deployment = replace(self.deployment, placed=scale, placed_time=self.now)
                return
            case Leave():
                kept = self.deployment.placed.servers(SERVERS)
        self.tritons = [has if at in kept else frozenset() for at, has in enumerate(self.tritons)]

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

    def forget(self) -> None:
        self.tritons = [frozenset()] * SERVERS

    def load(self, versions: set[int], serving: Serving, on: Scale) -> None:
        if serving == REFUSED:
            self.refused = serving
            return
        if BROKEN not in versions:
            chosen = on.servers(SERVERS)
            self.tritons = [
                frozenset(versions) if at in chosen else has for at, has in enumerate(self.tritons)
            ]
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
    world.forget()
    world.settle(answering=False)
    assert world.deployment.traffic == {2: 100}
    assert world.triton == {2}


SCALES = [Scale(0), Scale(1), Scale(1, first=2), Scale(2, first=2), Scale(3, first=1), ALL_SERVERS]


@given(st.lists(st.sampled_from(SCALES), min_size=1, max_size=5), st.sampled_from([1, 2, BROKEN]), st.data())
def test_a_deployment_may_be_moved_at_any_time_and_is_where_requests_look_for_it(
    scales: list[Scale], promoted: int, data: st.DataObject
) -> None:
    world = World()
    world.versions[1] = a_version(1)
    world.settle(answering=True)
    world.versions[promoted] = a_version(promoted)
    for scale in scales:
        world.deployment = replace(world.deployment, scale=scale)
        for _ in range(data.draw(st.integers(0, 8))):
            before = world.deployment.placed
            world.step()
            if world.deployment.placed.replicas and before.replicas:
                assert set(world.deployment.traffic) <= world.triton
    rollout = world.deployment.rollout
    begun = rollout is not None and rollout.to_version == promoted
    if scales[-1].replicas == 0 and not (begun and world.is_holding()):
        # A rollout waits until its version is to be somewhere, be it begun or not.
        return
    world.settle(answering=bool(scales[-1].replicas))
    deployment = world.deployment
    assert deployment.traffic == {2 if promoted == 2 else 1: 100}
    assert deployment.placed.servers(SERVERS) == scales[-1].servers(SERVERS)
    there = frozenset(deployment.traffic)
    assert world.tritons == [
        there if at in scales[-1].servers(SERVERS) else frozenset() for at in range(SERVERS)
    ]
    assert deployment.loaded == (there if scales[-1].replicas else frozenset())
    assert deployment.ready


def test_where_requests_go_is_mended_first_and_what_is_judged_does_not_wait_for_a_move() -> None:
    world = World()
    world.versions[1] = a_version(1)
    world.deployment = replace(world.deployment, scale=Scale(1), placed=Scale(1))
    world.settle(answering=True)
    world.deployment = replace(world.deployment, scale=Scale(1, first=2))
    lost = replace(world.situation(), loaded=frozenset(), arriving=frozenset())
    assert next_action(lost, world.now) == Load((world.versions[1],), DEFAULTS, Scale(1))
    # Its only server is away: the other one is all that can be mended.
    away = replace(lost, away=True)
    assert next_action(away, world.now) == Load((world.versions[1],), DEFAULTS, Scale(1, first=2))

    world.deployment = replace(world.deployment, scale=Scale(1))
    world.versions[2] = a_version(2)
    while set(world.deployment.traffic) != {1, 2}:
        world.step()
    world.deployment = replace(world.deployment, scale=Scale(1, first=2))
    assert isinstance(next_action(world.situation(), world.now), Judge)
    world.settle(answering=True)
    assert (world.deployment.traffic, world.deployment.placed) == ({2: 100}, Scale(1, first=2))


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
