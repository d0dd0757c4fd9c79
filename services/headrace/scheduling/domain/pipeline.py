"""What a pipeline may say, as far as scheduling decides it.

The dataset's schema is ingestion's to judge and a recipe's parameters are the recipe's; what is left is
here. Paths are those of `ApplyPipelineRequest`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from headrace.errors import FieldViolation, InvalidArgument
from headrace.scheduling.domain.preparation import Preparation, preparation_violations
from headrace.scheduling.domain.resources import GIBIBYTE, Resources, from_cores
from headrace.scheduling.domain.retraining import RetrainRules, retraining_violations

DEFAULT_CORES: Final = 1.0
DEFAULT_MEMORY: Final = GIBIBYTE
# Far above any machine and any patience, and far below what numbers, indexes and calendars can hold.
MAX_CORES: Final = 1_000_000
MAX_PRIORITY: Final = 1_000_000_000
MAX_DEADLINE: Final = timedelta(days=3650)
# Shares are written in decimal: 0.7 + 0.15 + 0.15 is not exactly 1 in binary.
SPLIT_TOLERANCE: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Split:
    """Shares of the rows for training, validation and test."""

    train: float
    validation: float
    test: float

    def share(self, name: str) -> float:
        """The share of the split with this name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}.get(name, 0.0)


@dataclass(frozen=True, slots=True)
class Gate:
    """A bound on a metric of one split."""

    metric: str
    split: str
    min: float | None
    max: float | None


@dataclass(frozen=True, slots=True)
class Rollout:
    """Percentages of the traffic, in steps, and how long each one is watched.

    `audience`: some callers get the new version whatever the step, so that the first one may be 0.
    """

    steps: tuple[int, ...]
    hold: timedelta
    audience: bool = False


@dataclass(frozen=True, slots=True)
class PipelineRules:
    """The parts of a pipeline that scheduling judges."""

    split: Split | None
    cpu: float
    memory: int
    gpu: int
    priority: int
    deadline: timedelta | None
    gates: Sequence[Gate]
    rollout: Rollout | None
    preparations: Sequence[Preparation] = ()
    feature_types: Mapping[str, str] = field(default_factory=dict)
    feature_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    label_normalisation: str = "none"
    retraining: RetrainRules | None = None
    deployed: bool = False


def job_resources(cpu: float, memory: int, gpu: int) -> Resources:
    """What a job asks for; what the pipeline leaves out is one core and 1 GiB."""
    return from_cores(cpu or DEFAULT_CORES, memory or DEFAULT_MEMORY, gpu)


def check_pipeline(rules: PipelineRules) -> None:
    """Raise `InvalidArgument` INVALID_PIPELINE that lists every field that makes no sense."""
    violations = list(_violations(rules))
    if violations:
        first = violations[0]
        raise InvalidArgument("INVALID_PIPELINE", f"{first.field}: {first.description}", fields=violations)


def _violations(rules: PipelineRules) -> Iterator[FieldViolation]:
    yield from _split_violations(rules.split)
    yield from preparation_violations(rules.preparations, rules.feature_types, rules.feature_shapes)
    if rules.label_normalisation not in ("none", "standard"):
        yield FieldViolation("spec.training.normalise_label", "must be none or standard")
    yield from _resource_violations(rules)
    for index, gate in enumerate(rules.gates):
        yield from _gate_violations(f"spec.gates[{index}]", gate, rules.split)
    if rules.rollout is not None:
        yield from _rollout_violations(rules.rollout)
    if rules.retraining is not None:
        yield from retraining_violations(rules.retraining, deployed=rules.deployed)


def _split_violations(split: Split | None) -> Iterator[FieldViolation]:
    if split is None:
        yield FieldViolation("spec.training.split", "say the shares of train, validation and test")
        return
    total = split.train + split.validation + split.test
    if not abs(total - 1.0) <= SPLIT_TOLERANCE:
        yield FieldViolation("spec.training.split", f"the shares sum to {total:g} and must sum to 1")
    for name in ("train", "validation", "test"):
        share = split.share(name)
        if not 0.0 <= share <= 1.0 or (name == "train" and share == 0.0):
            yield FieldViolation(f"spec.training.split.{name}", f"{share:g} is not a share of the rows")


def _resource_violations(rules: PipelineRules) -> Iterator[FieldViolation]:
    if not math.isfinite(rules.cpu) or rules.cpu < 0:
        yield FieldViolation("spec.resources.cpu", "must be a number of cores")
    elif 0 < rules.cpu < 0.001:
        yield FieldViolation("spec.resources.cpu", "the smallest share of a core is 0.001")
    elif rules.cpu > MAX_CORES:
        yield FieldViolation("spec.resources.cpu", f"must be at most {MAX_CORES} cores")
    if rules.memory < 0:
        yield FieldViolation("spec.resources.memory_bytes", "must not be negative")
    if rules.gpu < 0:
        yield FieldViolation("spec.resources.gpu", "must not be negative")
    if abs(rules.priority) > MAX_PRIORITY:
        yield FieldViolation("spec.priority", f"must be between {-MAX_PRIORITY} and {MAX_PRIORITY}")
    if rules.deadline is not None and rules.deadline < timedelta(0):
        yield FieldViolation("spec.deadline", "must not be negative; leave it out for no limit")
    elif rules.deadline is not None and rules.deadline > MAX_DEADLINE:
        yield FieldViolation("spec.deadline", "must be at most 3650 days; leave it out for no limit")


def _gate_violations(path: str, gate: Gate, split: Split | None) -> Iterator[FieldViolation]:
    if gate.min is None and gate.max is None:
        yield FieldViolation(path, "needs a min, a max or both")
    for name, bound in (("min", gate.min), ("max", gate.max)):
        if bound is not None and not math.isfinite(bound):
            yield FieldViolation(f"{path}.{name}", "must be a finite number")
    if gate.min is not None and gate.max is not None and gate.min > gate.max:
        yield FieldViolation(f"{path}.min", f"{gate.min:g} is above max, {gate.max:g}")
    if split is not None and split.share(gate.split) == 0.0:
        yield FieldViolation(f"{path}.split", f'the split "{gate.split}" has no rows')


def _rollout_violations(rollout: Rollout) -> Iterator[FieldViolation]:
    path = "spec.deployment.rollout"
    if not rollout.steps:
        yield FieldViolation(f"{path}.steps", "name at least one step; the last one is 100")
        return
    previous = -1 if rollout.audience else 0
    for index, step in enumerate(rollout.steps):
        if not previous < step <= 100:
            yield FieldViolation(
                f"{path}.steps[{index}]", f"{step} must be above {previous} and at most 100: steps rise"
            )
        previous = step
    if rollout.steps[-1] != 100:
        yield FieldViolation(f"{path}.steps[{len(rollout.steps) - 1}]", "the last step must be 100")
    if rollout.hold < timedelta(0):
        yield FieldViolation(f"{path}.hold", "must not be negative")
