from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.scheduling.domain.job import JobState
from headrace.scheduling.domain.node import Node, Occupant
from headrace.scheduling.domain.policy import (
    ExceedDeadline,
    JobView,
    Limits,
    LoseNode,
    Place,
    State,
    decide,
    free_resources,
)
from headrace.scheduling.domain.resources import NOTHING, Resources

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
LIMITS = Limits(lease=timedelta(seconds=10))
LONG_AGO = NOW - timedelta(hours=1)


def node(name: str, capacity: Resources, *, age: float = 1, reported: tuple[Occupant, ...] = ()) -> Node:
    last = NOW - timedelta(seconds=age)
    return Node(name, capacity, last + LIMITS.lease, last, reported=reported)


def queued(name: str, need: Resources, *, priority: int = 0, age: float = 0) -> JobView:
    return JobView(name, 1, JobState.QUEUED, priority, need, 1, "", NOW - timedelta(seconds=age))


def on_node(name: str, need: Resources, where: str, state: JobState = JobState.RUNNING) -> JobView:
    return JobView(name, 3, state, 0, need, 1, where, LONG_AGO, attempt_start_time=LONG_AGO)


def placements(state: State, now: datetime = NOW) -> dict[str, str]:
    return {action.job: action.node for action in decide(state, now, LIMITS) if isinstance(action, Place)}


ONE_CORE = Resources(0, 1000, 1)

sizes = st.builds(
    Resources,
    gpu=st.integers(0, 2),
    cpu_millis=st.integers(1, 8).map(lambda n: n * 500),
    memory=st.integers(1, 8),
)


@st.composite
def states(draw: st.DrawFn) -> State:
    names = [f"node-{index}" for index in range(draw(st.integers(0, 6)))]
    capacities = {name: draw(sizes) + draw(sizes) for name in names}
    jobs, room = [], dict(capacities)
    for index in range(draw(st.integers(0, 8))):
        if not names:
            break
        where, need = draw(st.sampled_from(names)), draw(sizes)
        if need.fits(room[where]):
            room[where] -= need
            state = draw(st.sampled_from([JobState.PLACED, JobState.RUNNING, JobState.CANCELLING]))
            jobs.append(on_node(f"held-{index}", need, where, state))
    reported: dict[str, tuple[Occupant, ...]] = defaultdict(tuple)
    for index in range(draw(st.integers(0, 3))):
        if names:
            where, need = draw(st.sampled_from(names)), draw(sizes)
            if need.fits(room[where]):
                room[where] -= need
                reported[where] = (*reported[where], Occupant(f"stray-{index}", 1, need))
    jobs += [
        queued(f"job-{index}", draw(sizes), priority=draw(st.integers(-1, 2)), age=draw(st.integers(0, 3)))
        for index in range(draw(st.integers(0, 20)))
    ]
    nodes = [
        node(name, capacities[name], age=draw(st.sampled_from([1, 1, 1, 60])), reported=reported[name])
        for name in names
    ]
    return State(jobs, nodes, LONG_AGO)


@given(states())
@settings(max_examples=300)
def test_no_node_gets_more_than_it_has(state: State) -> None:
    free = free_resources(state.nodes, state.jobs, NOW)
    needs = {job.id: job.resources for job in state.jobs}
    for job, where in placements(state).items():
        assert where in free, "a node whose lease has ended got a job"
        free[where] -= needs[job]
        assert NOTHING.fits(free[where])


@given(states())
@settings(max_examples=300)
def test_no_job_that_fits_is_passed_over(state: State) -> None:
    """When a job was left, each node lacked room for it, counting only jobs that go before it."""
    placed = placements(state)
    free = free_resources(state.nodes, state.jobs, NOW)
    for job in sorted(
        (job for job in state.jobs if job.state is JobState.QUEUED), key=lambda job: job.queue_key
    ):
        if job.id in placed:
            free[placed[job.id]] -= job.resources
        else:
            assert not any(job.resources.fits(room) for room in free.values())


@given(states(), st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_the_order_in_which_the_state_was_read_decides_nothing(state: State, random: object) -> None:
    jobs, nodes = list(state.jobs), list(state.nodes)
    random.shuffle(jobs)  # type: ignore[attr-defined]
    random.shuffle(nodes)  # type: ignore[attr-defined]
    assert placements(state) == placements(State(jobs, nodes, state.watching_since))


@given(states())
@settings(max_examples=200)
def test_deciding_again_after_applying_places_nothing_more(state: State) -> None:
    placed = placements(state)
    after = [
        replace(job, state=JobState.PLACED, node=placed[job.id]) if job.id in placed else job
        for job in state.jobs
    ]
    assert placements(replace(state, jobs=after)) == {}


@given(states())
@settings(max_examples=200)
def test_each_job_gets_at_most_one_action(state: State) -> None:
    actions = decide(state, NOW, LIMITS)
    assert len({action.job for action in actions}) == len(actions)


def test_priority_goes_first_and_age_decides_among_equals() -> None:
    jobs = [
        queued("young", ONE_CORE, age=1),
        queued("old", ONE_CORE, age=9),
        queued("urgent", ONE_CORE, priority=5),
    ]
    room = node("node-a", Resources(0, 2000, 8))
    assert placements(State(jobs, [room], LONG_AGO)) == {"urgent": "node-a", "old": "node-a"}


def test_a_job_takes_the_node_that_it_fills_best_and_leaves_gpus_alone() -> None:
    nodes = [
        node("big", Resources(0, 8000, 64)),
        node("gpu", Resources(2, 1000, 8)),
        node("small", Resources(0, 1000, 8)),
    ]
    assert placements(State([queued("job", ONE_CORE)], nodes, LONG_AGO)) == {"job": "small"}


def test_a_small_job_passes_a_large_one_that_fits_nowhere() -> None:
    jobs = [queued("large", Resources(0, 64000, 1), age=9), queued("small", ONE_CORE)]
    assert placements(State(jobs, [node("node-a", Resources(0, 1000, 8))], LONG_AGO)) == {"small": "node-a"}


def test_a_stray_attempt_takes_room_until_its_node_stopped_it() -> None:
    full = node("node-a", ONE_CORE, reported=(Occupant("job", 1, ONE_CORE),))
    again = replace(queued("job", ONE_CORE), attempt=2)
    assert placements(State([again], [full], LONG_AGO)) == {}
    assert placements(State([again], [replace(full, reported=())], LONG_AGO)) == {"job": "node-a"}


def test_a_silent_node_loses_its_jobs() -> None:
    state = State([on_node("job", ONE_CORE, "node-a")], [node("node-a", ONE_CORE, age=60)], LONG_AGO)
    assert decide(state, NOW, LIMITS) == [LoseNode("job", 3, "node-a", timedelta(seconds=60))]


def test_a_node_that_is_unknown_loses_its_jobs() -> None:
    state = State([on_node("job", ONE_CORE, "node-x")], [], LONG_AGO)
    assert [type(action) for action in decide(state, NOW, LIMITS)] == [LoseNode]


def test_nobody_is_lost_before_scheduling_listened_for_a_whole_lease() -> None:
    jobs, nodes = [on_node("job", ONE_CORE, "node-a")], [node("node-a", ONE_CORE, age=600)]
    assert decide(State(jobs, nodes, NOW - timedelta(seconds=9)), NOW, LIMITS) == []
    assert len(decide(State(jobs, nodes, NOW - timedelta(seconds=10)), NOW, LIMITS)) == 1


def test_a_run_past_its_deadline_is_ended_after_the_margin_left_to_its_node() -> None:
    job = replace(on_node("job", ONE_CORE, "node-a"), deadline=timedelta(minutes=1), attempt_start_time=NOW)
    state = State([job], [node("node-a", ONE_CORE)], LONG_AGO)
    due = NOW + timedelta(minutes=1) + LIMITS.deadline_margin
    alive = replace(state, nodes=[replace(state.nodes[0], lease_until=due + timedelta(hours=1))])
    assert decide(alive, due - timedelta(seconds=1), LIMITS) == []
    assert decide(alive, due, LIMITS) == [ExceedDeadline("job", 3, timedelta(minutes=1))]


def test_a_placed_attempt_that_its_node_never_starts_is_ended_like_one_that_runs_too_long() -> None:
    placed = on_node("job", ONE_CORE, "node-a", JobState.PLACED)
    job = replace(placed, deadline=timedelta(minutes=1), attempt_start_time=NOW)
    due = NOW + timedelta(minutes=1) + LIMITS.deadline_margin
    state = State([job], [replace(node("node-a", ONE_CORE), lease_until=due + timedelta(hours=1))], LONG_AGO)
    assert decide(state, due - timedelta(seconds=1), LIMITS) == []
    assert decide(state, due, LIMITS) == [ExceedDeadline("job", 3, timedelta(minutes=1))]
    cancelled = replace(state, jobs=[replace(job, state=JobState.CANCELLING)])
    assert decide(cancelled, due, LIMITS) == []


def test_after_a_gap_in_watching_a_node_has_the_margin_to_say_how_its_run_ended() -> None:
    job = replace(on_node("job", ONE_CORE, "node-a"), deadline=timedelta(minutes=1))
    state = State([job], [node("node-a", ONE_CORE)], NOW - LIMITS.deadline_margin + timedelta(seconds=1))
    assert decide(state, NOW, LIMITS) == []
    assert decide(state, NOW + timedelta(seconds=1), LIMITS) == [
        ExceedDeadline("job", 3, timedelta(minutes=1))
    ]


def test_a_deadline_that_leads_out_of_the_calendar_is_not_reached() -> None:
    job = replace(on_node("job", ONE_CORE, "node-a"), deadline=timedelta(seconds=315_576_000_000))
    assert decide(State([job], [node("node-a", ONE_CORE)], LONG_AGO), NOW, LIMITS) == []


def test_a_round_places_no_more_than_it_may() -> None:
    jobs = [queued(f"job-{index}", ONE_CORE) for index in range(5)]
    state = State(jobs, [node("node-a", Resources(0, 8000, 64))], LONG_AGO)
    assert len(decide(state, NOW, LIMITS, max_placements=2)) == 2
