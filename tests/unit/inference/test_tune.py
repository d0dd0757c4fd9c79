"""Tuning from its first look at the machine to what it leaves: nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from headrace.errors import FailedPrecondition, Unavailable
from headrace.inference.domain.deployments import Deployment, ServedVersion, Tensor
from headrace.inference.domain.load_windows import Window
from headrace.inference.domain.rollouts import Plan
from headrace.inference.domain.serving import Serving
from headrace.inference.domain.tuning import Goal, Measurement
from headrace.inference.use_cases.deployments import Deployments
from headrace.inference.use_cases.ports import LoadError, LoggedPrediction
from headrace.inference.use_cases.tune import StaleCopies, Started, Tuned, TuneDeployment, TuningWish
from headrace.inference.use_cases.tuning_ports import SampleRequest

NOW = datetime(2026, 1, 1, tzinfo=UTC)
VERSION = ServedVersion("m", 1, "file:///m", "", (Tensor("x", "FP32", (-1, 3)),), (), (), b"", "")


class Machine:
    """Two instances answer twice as much as one; a request waits for those under way."""

    def __init__(self) -> None:
        self.copy: Serving | None = None
        self.windows = 0
        self.answers = 1000
        self.refuses: Serving | None = None
        self.dies_after = 10_000
        self.live = 0
        # Of each look.
        self.more = 0
        self.held = False

    async def put(self, deployment: str, version: ServedVersion, serving: Serving) -> None:
        self.copy = serving
        if serving == self.refuses:
            raise LoadError("no memory")

    async def remove_all(self) -> None:
        self.copy = None

    async def live_requests(self) -> int:
        self.live += self.more
        return self.live

    def sample(
        self, deployment: str, version: ServedVersion, logged: Sequence[LoggedPrediction]
    ) -> SampleRequest:
        return SampleRequest(b"request", 1, "zeros")

    @asynccontextmanager
    async def sending(self, message: bytes) -> AsyncIterator[Machine]:
        yield self

    @asynccontextmanager
    async def take(self) -> AsyncIterator[bool]:
        yield not self.held

    async def window(self, *, in_flight: int, rate: float, seconds: float) -> Window:
        assert self.copy is not None
        self.windows += 1
        if self.windows > self.dies_after:
            raise Unavailable("TRITON_UNAVAILABLE", "it is gone")
        taken = 0.001 * in_flight / self.copy.instances
        return Window([taken] * self.answers * self.copy.instances, 0, 1.0)


class Store:
    """One deployment."""

    def __init__(self) -> None:
        self.found = Deployment("live", "m", Plan(), NOW, NOW, traffic={1: 100})
        self.served: Serving | None = None

    @asynccontextmanager
    async def work(self) -> AsyncIterator[Any]:
        yield SimpleNamespace(rows=self)

    async def deployment(self, name: str) -> Deployment:
        return self.found

    async def served_versions(self, model: str) -> list[ServedVersion]:
        return [VERSION]

    async def predictions(self, *_: object) -> list[LoggedPrediction]:
        return []

    async def serve(self, name: str, serving: Serving) -> None:
        self.served = serving


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def tune(machine: Machine, store: Store) -> TuneDeployment:
    deployments = cast("Deployments", store)
    return TuneDeployment(store.work, deployments, machine, machine, machine, cores=2, watch_seconds=0.001)


def wish(*, seconds: float = 300, **fields: bool) -> TuningWish:
    return TuningWish("live", Goal(0.008), timedelta(seconds=seconds), **fields)


async def refusal(tune: TuneDeployment, asked: TuningWish) -> str:
    with pytest.raises(FailedPrecondition) as refused:
        [_ async for _ in tune(asked)]
    return refused.value.reason


async def test_it_says_what_it_measures_then_each_measurement_then_what_it_proposes(
    tune: TuneDeployment, machine: Machine, store: Store
) -> None:
    start, *measured, end = [step async for step in tune(wish())]
    assert start == Started(1, Serving(), "zeros", 1)
    assert all(isinstance(step, Measurement) for step in measured)
    assert isinstance(end, Tuned)
    assert end.complete
    assert end.proposal.measurement.serving.instances == 2
    assert not end.applied
    assert store.served is None
    assert machine.copy is None


async def test_what_keeps_the_target_is_applied_where_that_is_asked_for(
    tune: TuneDeployment, machine: Machine, store: Store
) -> None:
    *_, end = [step async for step in tune(wish(apply=True))]
    assert isinstance(end, Tuned)
    assert end.applied
    assert store.served == end.proposal.measurement.serving
    store.served, machine.answers = None, 1
    # Too few answers to keep anything: a request takes as long as a second.
    slow = TuningWish("live", Goal(0.0001), timedelta(seconds=5), apply=True)
    *_, end = [step async for step in tune(slow)]
    assert isinstance(end, Tuned)
    assert not end.proposal.keeps_target
    assert not end.applied
    assert store.served is None


async def test_when_the_time_is_over_the_best_so_far_is_proposed(
    tune: TuneDeployment, machine: Machine
) -> None:
    *_, end = [step async for step in tune(wish(seconds=0))]
    assert isinstance(end, Tuned)
    assert not end.complete
    assert end.proposal.measurement.serving == Serving()


async def test_live_traffic_is_left_alone_before_and_meanwhile_unless_that_is_allowed(
    tune: TuneDeployment, machine: Machine
) -> None:
    machine.more = 100
    assert await refusal(tune, wish()) == "LIVE_TRAFFIC"
    assert machine.windows == 0
    machine.more = 0

    async def with_traffic_after_the_first() -> None:
        async for step in tune(wish()):
            if isinstance(step, Measurement):
                machine.more = 100_000

    with pytest.raises(FailedPrecondition, match="requests/s") as refused:
        await with_traffic_after_the_first()
    assert refused.value.reason == "LIVE_TRAFFIC"
    assert machine.copy is None
    *_, end = [step async for step in tune(wish(beside_traffic=True))]
    assert isinstance(end, Tuned)


async def test_one_at_a_time_and_only_where_a_version_answers(
    tune: TuneDeployment, machine: Machine, store: Store
) -> None:
    machine.held = True
    assert await refusal(tune, wish()) == "TUNING_IN_PROGRESS"
    store.found = Deployment("live", "m", Plan(), NOW, NOW)
    assert await refusal(tune, wish()) == "NOTHING_TO_TUNE"


async def test_a_model_that_does_not_load_or_answer_ends_it(tune: TuneDeployment, machine: Machine) -> None:
    machine.refuses = Serving()
    assert await refusal(tune, wish()) == "MODEL_FAILS"
    machine.refuses, machine.answers = None, 0
    assert await refusal(tune, wish()) == "MODEL_FAILS"
    assert machine.copy is None


async def test_a_setting_that_does_not_load_is_passed_over(tune: TuneDeployment, machine: Machine) -> None:
    machine.refuses = Serving(instances=2)
    *_, end = [step async for step in tune(wish())]
    assert isinstance(end, Tuned)
    assert end.proposal.keeps_target
    assert end.proposal.measurement.serving != machine.refuses


async def test_a_triton_that_dies_ends_it_and_no_copy_stays(tune: TuneDeployment, machine: Machine) -> None:
    machine.dies_after = 10
    with pytest.raises(Unavailable):
        [_ async for _ in tune(wish())]
    assert machine.copy is None


async def test_copies_of_a_process_that_died_are_removed_unless_somebody_tunes(machine: Machine) -> None:
    stale = StaleCopies(machine, machine)
    machine.copy, machine.held = Serving(), True
    await stale.remove()
    assert machine.copy is not None
    machine.held = False
    await stale.remove()
    assert machine.copy is None
