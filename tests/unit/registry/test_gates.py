from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.registry.domain.gates import Gate, judge, passed


@given(
    value=st.floats(allow_nan=False, allow_infinity=False),
    low=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    high=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_gate_is_passed_exactly_within_its_bounds(
    value: float, low: float | None, high: float | None
) -> None:
    [result] = judge([Gate("m", "test", low, high)], {"test/m": value})
    assert result.passed == ((low is None or value >= low) and (high is None or value <= high))


@pytest.mark.parametrize("metrics", [{}, {"train/recall": 1.0}, {"test/recall": math.nan}])
def test_what_was_not_measured_passes_no_gate(metrics: dict[str, float]) -> None:
    [result] = judge([Gate("recall", "test")], metrics)
    assert not result.passed


def test_a_refusal_names_metric_value_and_threshold() -> None:
    [result] = judge([Gate("recall", "test", min=0.9)], {"test/recall": 0.8765})
    assert result.message == "recall on test is 0.8765, at least 0.9 is asked for"


def test_no_gates_promote() -> None:
    assert passed(judge([], {}))
