"""Gates: bounds that a version's metrics must keep."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from headrace.errors import FieldViolation, InvalidArgument


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


def check_gates(gates: Sequence[Gate]) -> None:
    """Raises InvalidArgument/INVALID_GATE for gates that could not be judged, each field at fault named."""
    violations = [found for index, gate in enumerate(gates) for found in _violations(f"gates[{index}]", gate)]
    if violations:
        first = violations[0]
        raise InvalidArgument("INVALID_GATE", f"{first.field}: {first.description}", fields=violations)


def judge(gates: Iterable[Gate], metrics: Mapping[str, float]) -> tuple[GateResult, ...]:
    """Hold metrics, named "split/metric", against gates. What is missing or not finite passes no gate."""
    return tuple(_judge_one(gate, metrics.get(f"{gate.split}/{gate.metric}")) for gate in gates)


def passed(results: Iterable[GateResult]) -> bool:
    """Whether every gate was passed; true where there is none."""
    return all(result.passed for result in results)


def describe(gates: Iterable[Gate]) -> str:
    """Gates in a line: "accuracy on test >= 0.93, loss on test <= 0.4"."""
    bounds = (
        f"{gate.metric} on {gate.split} {sign} {bound:g}"
        for gate in gates
        for sign, bound in ((">=", gate.min), ("<=", gate.max))
        if bound is not None
    )
    return ", ".join(bounds) or "no gates"


def _judge_one(gate: Gate, value: float | None) -> GateResult:
    what = f"{gate.metric} on {gate.split}"
    if value is None:
        return GateResult(gate, None, passed=False, message=f"{what} was not measured")
    if not math.isfinite(value):
        return GateResult(gate, value, passed=False, message=f"{what} is not a finite number")
    if gate.min is not None and value < gate.min:
        message = f"{what} is {_beside(value, gate.min)}, at least {gate.min:g} is asked for"
        return GateResult(gate, value, passed=False, message=message)
    if gate.max is not None and value > gate.max:
        message = f"{what} is {_beside(value, gate.max)}, at most {gate.max:g} is asked for"
        return GateResult(gate, value, passed=False, message=message)
    return GateResult(gate, value, passed=True, message=f"{what} is {value:.4g}")


def _beside(value: float, bound: float) -> str:
    """The value, rounded, but never so far that it looks like the bound that it misses."""
    rounded = f"{value:.4g}"
    return repr(value) if float(rounded) == float(f"{bound:g}") else rounded


def _violations(path: str, gate: Gate) -> Iterator[FieldViolation]:
    bounds = {"min": gate.min, "max": gate.max}
    if all(bound is None for bound in bounds.values()):
        yield FieldViolation(path, "needs a min, a max or both")
    for name, bound in bounds.items():
        if bound is not None and not math.isfinite(bound):
            yield FieldViolation(f"{path}.{name}", "must be a finite number")
    if gate.min is not None and gate.max is not None and gate.min > gate.max:
        yield FieldViolation(f"{path}.min", f"{gate.min:g} is above max, {gate.max:g}")
