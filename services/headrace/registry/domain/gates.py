"""Gates: bounds that a version's metrics must keep."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gate:
    """A metric on a split, with inclusive bounds; either may be absent."""

    metric: str
    split: str
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True, slots=True)
class GateResult:
    """How a version stood at a gate. `value` is None where its report has no such metric."""

    gate: Gate
    value: float | None
    passed: bool
    message: str


def judge(gates: Iterable[Gate], metrics: Mapping[str, float]) -> tuple[GateResult, ...]:
    """Hold metrics, named "split/metric", against gates. A missing metric or NaN passes no gate."""
    return tuple(_judge_one(gate, metrics.get(f"{gate.split}/{gate.metric}")) for gate in gates)


def passed(results: Iterable[GateResult]) -> bool:
    """Whether every gate was passed; true where there is none."""
    return all(result.passed for result in results)


def _judge_one(gate: Gate, value: float | None) -> GateResult:
    what = f"{gate.metric} on {gate.split}"
    if value is None:
        return GateResult(gate, None, passed=False, message=f"{what} was not measured")
    if math.isnan(value):
        return GateResult(gate, value, passed=False, message=f"{what} is not a number")
    if gate.min is not None and value < gate.min:
        return GateResult(
            gate, value, passed=False, message=f"{what} is {value:.4g}, at least {gate.min:g} is asked for"
        )
    if gate.max is not None and value > gate.max:
        return GateResult(
            gate, value, passed=False, message=f"{what} is {value:.4g}, at most {gate.max:g} is asked for"
        )
    return GateResult(gate, value, passed=True, message=f"{what} is {value:.4g}")
