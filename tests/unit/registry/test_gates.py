from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidArgument
from headrace.registry.domain.gates import Gate, check_gates, describe, judge, passed

finite = st.floats(allow_nan=False, allow_infinity=False)


@given(value=finite, low=st.none() | finite, high=st.none() | finite)
def test_a_gate_is_passed_exactly_within_its_bounds(
    value: float, low: float | None, high: float | None
) -> None:
    [result] = judge([Gate("m", "test", low, high)], {"test/m": value})
    assert result.passed == ((low is None or value >= low) and (high is None or value <= high))


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"train/recall": 1.0},
        {"test/recall": math.nan},
        {"test/recall": math.inf},
        {"test/recall": -math.inf},
    ],
)
@pytest.mark.parametrize("gate", [Gate("recall", "test", min=0.9), Gate("recall", "test", max=0.9)])
def test_what_was_not_measured_passes_no_gate(gate: Gate, metrics: dict[str, float]) -> None:
    [result] = judge([gate], metrics)
    assert not result.passed


def test_a_refusal_names_metric_value_and_threshold() -> None:
    [low, high] = judge(
        [Gate("recall", "test", min=0.9), Gate("loss", "test", max=0.1)],
        {"test/recall": 0.8765, "test/loss": 0.25},
    )
    assert low.message == "recall on test is 0.8765, at least 0.9 is asked for"
    assert high.message == "loss on test is 0.25, at most 0.1 is asked for"


def test_a_near_miss_does_not_look_like_a_hit() -> None:
    [result] = judge([Gate("recall", "test", min=0.9)], {"test/recall": 0.899999})
    assert not result.passed
    assert result.message == "recall on test is 0.899999, at least 0.9 is asked for"


def test_one_gate_that_is_missed_refuses() -> None:
    gates = [Gate("accuracy", "test", min=0.9), Gate("recall", "test", min=0.9)]
    assert passed(judge(gates, {"test/accuracy": 0.95, "test/recall": 0.9}))
    assert not passed(judge(gates, {"test/accuracy": 0.95, "test/recall": 0.89}))


def test_no_gates_promote() -> None:
    assert passed(judge([], {}))


@pytest.mark.parametrize(
    ("gate", "field"),
    [
        (Gate("m", "test"), "gates[1]"),
        (Gate("m", "test", min=math.nan), "gates[1].min"),
        (Gate("m", "test", max=math.inf), "gates[1].max"),
        (Gate("m", "test", min=0.9, max=0.1), "gates[1].min"),
    ],
)
def test_gates_that_nobody_could_judge_are_refused_with_the_field(gate: Gate, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_gates([Gate("m", "test", min=0.0), gate])
    assert refused.value.reason == "INVALID_GATE"
    assert [violation.field for violation in refused.value.fields] == [field]


def test_gates_read_as_a_line() -> None:
    gates = [Gate("accuracy", "test", min=0.93), Gate("loss", "validation", min=0.0, max=0.4)]
    assert describe(gates) == "accuracy on test >= 0.93, loss on validation >= 0, loss on validation <= 0.4"
    assert describe([]) == "no gates"
