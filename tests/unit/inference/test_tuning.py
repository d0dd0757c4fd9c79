"""The search over settings, on servers that are simulated."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.inference.domain.load_windows import Window, at_rest, measured
from headrace.inference.domain.serving import DEFAULTS, Serving
from headrace.inference.domain.tuning import Goal, Measurement, Proposal, Search, Space, Trial

SPACE = Space(least_batch=1, most_batch=256, most_instances=4)
MS = timedelta(milliseconds=1)


@dataclass(frozen=True)
class Machine:
    """A server whose batches take `fixed` seconds and `row` more for each row, on so many cores.

    A batch holds what has come while the one before ran, and more where requests wait for it.
    """

    fixed: float = 0.002
    row: float = 0.0001
    cores: int = 2
    noise: float = 0.0
    seed: int = 0

    def measure(self, trial: Trial, goal: Goal) -> Measurement:
        serving = trial.serving
        delay = serving.max_queue_delay.total_seconds()
        # More instances than cores share them.
        slower = max(1.0, serving.instances / self.cores)
        at_once = trial.in_flight or goal.rate * (delay + self.fixed * slower)
        batch = max(1.0, min(serving.max_batch_size, at_once / serving.instances))
        run = (self.fixed + self.row * batch) * slower
        # A batch that is not full waits, for those who are not coming.
        wait = delay if batch < serving.max_batch_size else 0.0
        most = serving.instances * batch / (run + wait)
        throughput = min(goal.rate, most) if goal.rate else most
        queued = trial.in_flight / most if trial.in_flight else (run + wait) * (1 + (goal.rate > most) * 1e3)
        jitter = random.Random(f"{self.seed} {trial}").gauss(1, self.noise) if self.noise else 1.0
        return Measurement(trial, throughput * jitter, queued * 0.8, max(queued, run) / jitter, answered=5000)


def searched(machine: Machine, goal: Goal, current: Serving = DEFAULTS, space: Space = SPACE) -> Search:
    search = Search(goal, space, current)
    trials = search.trials()
    trial = next(trials)
    try:
        while True:
            trial = trials.send(machine.measure(trial, goal))
    except StopIteration:
        return search


def proposed(search: Search) -> Proposal:
    proposal = search.proposal()
    assert proposal is not None
    return proposal


def best_of_all(machine: Machine, goal: Goal) -> float:
    """The highest throughput of any setting within the target, by trying a dense grid."""
    found = 0.0
    for instances in range(1, SPACE.most_instances + 1):
        for batch in (2**power for power in range(9)):
            for in_flight in (math.ceil(1.3**power) for power in range(24)):
                measurement = machine.measure(Trial(Serving(batch, instances=instances), in_flight), goal)
                if measurement.keeps(goal):
                    found = max(found, measurement.throughput)
    return found


@settings(max_examples=30)
@given(
    fixed=st.floats(0.0005, 0.02),
    row=st.floats(0.00001, 0.005),
    cores=st.integers(1, 4),
    target=st.floats(0.005, 0.2),
)
def test_it_comes_close_to_the_best_of_all_settings(
    fixed: float, row: float, cores: int, target: float
) -> None:
    machine, goal = Machine(fixed, row, cores), Goal(target)
    best = best_of_all(machine, goal)
    proposal = proposed(searched(machine, goal))
    assert proposal.keeps_target == (best > 0)
    assert proposal.measurement.throughput >= 0.6 * best


def test_it_needs_few_measurements() -> None:
    assert len(searched(Machine(), Goal(0.02)).measurements) < 60


def test_where_no_setting_keeps_the_target_the_fastest_is_proposed_and_that_is_said() -> None:
    search = searched(Machine(fixed=0.050), Goal(0.010))
    proposal = proposed(search)
    assert not proposal.keeps_target
    assert "no setting keeps a p99 of 10 ms" in proposal.reason
    assert proposal.measurement.latency <= 1.05 * min(m.latency for m in search.measurements)


def test_the_current_setting_stays_where_others_are_no_better_than_noise() -> None:
    # Batches of one: neither their size nor instances of one core change anything.
    machine = Machine(fixed=0.0, row=0.01, cores=1, noise=0.01)
    proposal = proposed(searched(machine, Goal(1.0), current=Serving(32)))
    assert not proposal.changes
    assert "keep the current one" in proposal.reason


def test_at_a_rate_the_setting_with_the_lowest_latency_is_proposed() -> None:
    search = searched(Machine(), Goal(0.05, rate=300), current=Serving(64, 10 * MS))
    proposal = proposed(search)
    assert {m.trial.in_flight for m in search.measurements} == {0}
    assert proposal.measurement.serving.max_queue_delay == timedelta()
    assert proposal.measurement.latency <= 1.05 * min(m.latency for m in search.measurements)


def test_a_rate_that_no_setting_keeps_up_with_is_no_success() -> None:
    proposal = proposed(searched(Machine(row=0.01), Goal(0.5, rate=1000)))
    assert not proposal.keeps_target
    assert "at 1000 requests/s" in proposal.reason


def test_no_batch_is_smaller_than_the_requests_or_larger_than_fits() -> None:
    search = searched(Machine(), Goal(0.02), current=Serving(64), space=Space(8, 100, 2))
    sizes = {m.serving.max_batch_size for m in search.measurements}
    assert min(sizes) == 8
    assert max(sizes) == 100
    assert {m.serving.instances for m in search.measurements} == {1, 2}


def test_who_proposes_smaller_batches_says_what_they_refuse() -> None:
    # Rows so slow that only small batches are in time.
    machine = Machine(fixed=0.001, row=0.004, cores=4)
    search = Search(Goal(0.02), SPACE, Serving(64))
    small = machine.measure(Trial(Serving(4), 4), search.goal)
    search.measurements = [replace(small, trial=Trial(Serving(64), 4), latency=0.03), small]
    assert "requests of more than 4 rows are refused" in proposed(search).reason


def test_settings_that_fail_are_not_proposed() -> None:
    class Fails(Machine):
        def measure(self, trial: Trial, goal: Goal) -> Measurement:
            measurement = super().measure(trial, goal)
            if trial.serving.instances > 1:
                # Such a model has no memory for two.
                return replace(measurement, answered=0, failed=1, throughput=0.0, latency=0.0)
            return measurement

    proposal = proposed(searched(Fails(cores=4), Goal(0.02)))
    assert proposal.measurement.serving.instances == 1
    assert proposal.keeps_target


def test_an_outlier_does_not_decide_among_the_close() -> None:
    goal = Goal(0.02)
    good, lucky = Trial(Serving(16), 8), Trial(Serving(32), 8)
    search = Search(goal, SPACE, DEFAULTS)
    search.measurements = [
        *(Measurement(good, 1000, 0.005, latency, 5000) for latency in (0.010, 0.011, 0.010)),
        Measurement(lucky, 1090, 0.005, 0.009, 5000),
        # Its other two were beyond the target.
        *(Measurement(lucky, 950, 0.005, 0.021, 5000) for _ in range(2)),
    ]
    assert proposed(search).measurement.trial == good


def test_noise_changes_little() -> None:
    quiet = proposed(searched(Machine(), Goal(0.02))).measurement.throughput
    for seed in range(5):
        serving = proposed(searched(Machine(noise=0.03, seed=seed), Goal(0.02))).measurement.trial
        assert Machine().measure(serving, Goal(0.02)).throughput >= 0.85 * quiet


def test_before_the_first_measurement_there_is_no_proposal() -> None:
    assert Search(Goal(0.02), SPACE, DEFAULTS).proposal() is None


def windows(count: int, seconds: Callable[[int], float], each: int = 500) -> Sequence[Window]:
    return [Window([seconds(index)] * each, 0, 1.0) for index in range(count)]


def test_a_measurement_is_over_when_three_parts_in_a_row_agree() -> None:
    assert not at_rest(windows(2, lambda _: 0.01), 0.99)
    assert at_rest(windows(3, lambda _: 0.01), 0.99)
    # The first ones are still warming up.
    assert at_rest(windows(5, lambda index: 0.1 if index < 2 else 0.01), 0.99)
    assert not at_rest(windows(5, lambda index: 0.1 if index == 4 else 0.01), 0.99)


def test_too_few_requests_say_nothing_of_a_percentile() -> None:
    few = windows(3, lambda _: 0.01, each=100)
    assert not at_rest(few, 0.99)
    assert at_rest(few, 0.9)


def test_the_last_three_parts_are_what_was_measured() -> None:
    trial = Trial(DEFAULTS, 4)
    parts = [Window([9.0] * 10, 2, 1.0), *windows(3, lambda index: 0.01 + 0.01 * index, each=100)]
    found = measured(trial, parts, 0.99)
    assert (found.answered, found.failed, found.throughput) == (300, 2, 100)
    assert (found.p50, found.latency) == (pytest.approx(0.02), pytest.approx(0.03))
    assert not found.stable
    assert not math.isnan(measured(trial, [Window([], 1, 1.0)], 0.99).latency)
