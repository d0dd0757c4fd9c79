"""How much of a deployment there is: up when requests wait, down when fewer would do, never to and fro."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.errors import InvalidArgument
from headrace.inference.domain.scaling import (
    AFTER_UP_SECONDS,
    DOWN_SECONDS,
    EVERYWHERE,
    MAX_REPLICAS,
    Sample,
    Scale,
    Scaling,
    checked,
    next_scale,
)
from headrace.inference.messages import scaling_from, scaling_message

MINUTES = timedelta(minutes=1)


class Load:
    """Requests a second, each of which a process works on for so long; waiting grows as processes get busy.

    The mean waiting time of a queue with Poisson arrivals and one server, for each process a share of the
    requests.
    """

    def __init__(
        self, scaling: Scaling, *, servers: int = 4, scale: Scale | None = None, base: int = 1
    ) -> None:
        self.scaling = scaling
        self.servers = servers
        self.base = base
        self.scale = scale or Scale(1)
        self.samples = [Sample(0.0)]
        self.steady_since = self.asked = 0.0
        self.seen: list[Scale] = []

    @property
    def processes(self) -> int:
        return len(self.scale.servers(self.servers)) * (self.scale.instances or self.base)

    def second(self, rate: float, work: float, *, demanded: bool = False) -> Scale:
        before = self.samples[-1]
        now = before.time + 1
        if self.processes:
            busy = min(1.0, rate * work / self.processes)
            waited = work * busy / max(0.01, 2 * (1 - busy))
            sample = Sample(
                now,
                before.requests + round(rate),
                before.queued + round(rate) * waited,
                before.busy + busy * self.processes,
            )
            if rate:
                self.asked = now
        else:
            sample = replace(before, time=now)
        if demanded:
            self.asked = now
        self.samples.append(sample)
        following = next_scale(
            self.scaling,
            self.scale,
            base_instances=self.base,
            servers=self.servers,
            samples=self.samples,
            steady_since=self.steady_since,
            asked=self.asked,
            demanded=demanded,
        )
        if following != self.scale:
            self.scale, self.steady_since = following, now
            self.seen.append(following)
        return following

    def run(self, seconds: int, rate: float, work: float) -> Scale:
        for _ in range(seconds):
            self.second(rate, work)
        return self.scale


@given(
    st.integers(0, 5),
    st.integers(1, 6),
    st.integers(0, 3),
    st.integers(1, 5),
    st.lists(st.tuples(st.floats(0, 300), st.floats(0.001, 0.05)), max_size=6),
)
def test_bounds_are_kept_whatever_the_load(
    lowest: int, highest: int, instances: int, servers: int, load: list[tuple[float, float]]
) -> None:
    scaling = Scaling(lowest, max(lowest, highest, 1), instances, idle=timedelta(seconds=20))
    world = Load(scaling, servers=servers)
    for rate, work in load:
        for _ in range(30):
            scale = world.second(rate, work)
            assert min(lowest, servers) <= len(scale.servers(servers)) <= min(scaling.max_replicas, servers)
            assert not instances or 1 <= scale.instances <= max(instances, 1)


@given(st.floats(0, 300), st.floats(0.001, 0.03))
@example(20.0, 0.029296875)
def test_under_a_steady_load_it_comes_to_rest(rate: float, work: float) -> None:
    world = Load(Scaling(1, 4, 3))
    world.run(600, rate, work)
    settled = len(world.seen)
    world.run(600, rate, work)
    assert len(world.seen) == settled, world.seen


def test_where_requests_wait_there_is_one_more_process_then_one_more_server() -> None:
    world = Load(Scaling(1, 2, 2))
    world.run(120, 190, 0.01)
    assert [(scale.replicas, scale.instances) for scale in world.seen][:3] == [(1, 1), (1, 2), (2, 2)]
    ups = world.steady_since
    # Nobody asks as much any more: it comes down, one at a time, and slowly.
    world.run(int(DOWN_SECONDS) - 5, 20, 0.01)
    assert world.steady_since == ups
    world.run(300, 20, 0.01)
    assert (world.scale.replicas, world.scale.instances) == (1, 1)


def test_one_step_waits_for_what_the_last_one_did() -> None:
    world = Load(Scaling(1, 4))
    changes = [at for at in range(90) if (before := world.scale) != world.second(350, 0.01) and before]
    assert len(changes) == 3
    assert all(later - sooner >= AFTER_UP_SECONDS for sooner, later in itertools.pairwise(changes))


def test_what_nobody_asks_for_is_unloaded_and_comes_back_when_somebody_does() -> None:
    world = Load(Scaling(0, 2, idle=MINUTES))
    assert world.run(30, 1, 0.01).replicas == 1
    assert world.run(59, 0, 0.01).replicas == 1
    assert world.run(2, 0, 0.01).replicas == 0
    assert world.run(600, 0, 0.01).replicas == 0
    assert world.second(0, 0.01, demanded=True).replicas == 1
    assert world.run(30, 0, 0.01).replicas == 1


def test_a_deployment_of_which_nothing_is_said_is_on_every_server_whatever_comes() -> None:
    world = Load(EVERYWHERE, scale=Scale(MAX_REPLICAS))
    for rate in (0, 400, 0):
        world.run(400, rate, 0.01)
    # As many as there are, and no less when some are away.
    assert len(world.scale.servers(4)) == 4


def test_more_processes_that_an_operator_sets_are_the_least() -> None:
    world = Load(Scaling(1, 1, 4), base=3)
    assert world.second(1, 0.001).instances == 3


@pytest.mark.parametrize(
    ("scaling", "field"),
    [
        (Scaling(-1), "scaling.min_replicas"),
        (Scaling(3, 2), "scaling.max_replicas"),
        (Scaling(0, 0), "scaling.max_replicas"),
        (Scaling(max_instances=65), "scaling.max_instances"),
        (Scaling(idle=timedelta(seconds=4)), "scaling.idle"),
        (Scaling(queue=timedelta()), "scaling.queue"),
    ],
)
def test_bounds_that_cannot_be_kept_are_refused(scaling: Scaling, field: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        checked(scaling)
    assert raised.value.reason == "INVALID_SCALING"
    assert [violation.field for violation in raised.value.fields] == [field]
    assert checked(Scaling()) == Scaling()


def test_bounds_are_told_and_stored_as_they_were_said() -> None:
    said = scheduling_pb2.Scaling(max_replicas=3)
    assert scaling_from(said) == Scaling(1, 3)
    said.min_replicas = 0
    said.idle.FromSeconds(60)
    assert scaling_from(said) == Scaling(0, 3, idle=MINUTES)
    assert scaling_from(scaling_message(Scaling(0, 2, 4, MINUTES, MINUTES))) == Scaling(
        0, 2, 4, MINUTES, MINUTES
    )
