"""Deployments go where memory and work allow, and stay where they are as far as they can."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.domain.placement import (
    FILE_FACTOR,
    MIB,
    PROCESS_BYTES,
    Placed,
    Tenant,
    fits_now,
    memory_of,
    place,
)
from headrace.inference.domain.scaling import Scale
from headrace.model_formats import ModelFormat

UP = frozenset(range(3))


def tenant(name: str, scale: Scale, memory: int = 100, busy: float = 0.0) -> Tenant:
    return Tenant(name, scale, memory, busy)


def placed(
    wanted: Scale, now: Scale, *others: Tenant, budget: int = 0, evictable: tuple[str, ...] = ()
) -> Placed | None:
    return place(wanted, tenant("new", now), others, servers=3, up=UP, budget=budget, evictable=evictable)


def test_it_goes_to_the_server_with_the_least_to_do_then_to_the_emptiest() -> None:
    busy = tenant("busy", Scale(1, first=0), busy=0.9)
    idle = tenant("idle", Scale(1, first=1), busy=0.1)
    assert placed(Scale(1), Scale(0), busy, idle) == Placed(Scale(1, first=2))
    full = tenant("full", Scale(1, first=2), busy=0.1, memory=1000)
    assert placed(Scale(1), Scale(0), busy, idle, full) == Placed(Scale(1, first=1))


def test_it_stays_where_it_is_and_grows_there() -> None:
    other = tenant("other", Scale(1, first=1), busy=0.9)
    assert placed(Scale(1), Scale(1, first=1), other) == Placed(Scale(1, first=1))
    grown = placed(Scale(2), Scale(1, first=1), other)
    assert grown is not None
    assert 1 in grown.scale.servers(3)


def test_it_keeps_away_from_servers_that_do_not_answer() -> None:
    found = place(Scale(1), tenant("new", Scale(1, first=0)), [], servers=3, up={1}, budget=0, evictable=())
    assert found == Placed(Scale(1, first=1))


def test_where_memory_is_short_who_was_not_asked_for_longest_makes_room_and_only_as_many_as_have_to() -> None:
    others = [tenant(f"at-{at}", Scale(1, first=at)) for at in range(3)]
    assert placed(Scale(1), Scale(0), *others, budget=150) is None
    found = placed(Scale(1), Scale(0), *others, budget=150, evictable=("at-2", "at-0"))
    assert found == Placed(Scale(1, first=2), ("at-2",))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(1, 80)), max_size=6),
    st.integers(1, 3),
    st.integers(1, 120),
)
def test_no_server_gets_more_than_fits(
    others: list[tuple[int, int, int]], replicas: int, memory: int
) -> None:
    there = [
        tenant(str(number), Scale(count, first), size) for number, (count, first, size) in enumerate(others)
    ]
    names = tuple(other.name for other in there)
    found = place(
        Scale(replicas), tenant("new", Scale(0), memory), there, servers=3, up=UP, budget=100, evictable=names
    )
    # All others could go.
    assert (found is None) == (memory > 100)
    if found is not None:
        left = [other for other in there if other.name not in found.evicted]
        for server in found.scale.servers(3):
            used = sum(other.memory for other in left if server in other.scale.servers(3))
            assert used + memory <= 100


def test_what_is_to_go_takes_room_until_it_has_gone() -> None:
    going = Tenant("going", Scale(0), 60, there=frozenset({1}))
    assert fits_now({0}, 60, [going], 100)
    assert not fits_now({1}, 60, [going], 100)
    assert fits_now({1}, 60, [replace(going, there=frozenset())], 100)


def test_memory_is_that_of_each_process_and_its_file() -> None:
    version = ServedVersion("m", 1, "file:///m", "", (), (), (), b"", "", size=10 * MIB)
    each = PROCESS_BYTES[ModelFormat.ONNX] + FILE_FACTOR * 10 * MIB
    assert memory_of([version, version], 3) == 6 * each
