from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from headrace.errors import InvalidArgument
from headrace.scheduling.domain.pipeline import (
    Gate,
    PipelineRules,
    Rollout,
    Split,
    check_pipeline,
    job_resources,
)
from headrace.scheduling.domain.resources import GIBIBYTE, Resources

RULES = PipelineRules(
    split=Split(0.7, 0.15, 0.15),
    cpu=1,
    memory=GIBIBYTE,
    gpu=0,
    priority=0,
    deadline=None,
    gates=[Gate("accuracy", "test", 0.9, None)],
    rollout=Rollout((10, 50, 100), timedelta(seconds=5)),
)


def test_a_good_pipeline_passes() -> None:
    check_pipeline(RULES)
    check_pipeline(replace(RULES, rollout=None, gates=[], split=Split(1.0, 0.0, 0.0)))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"split": None}, "spec.training.split"),
        ({"split": Split(0.7, 0.2, 0.2)}, "spec.training.split"),
        ({"split": Split(1.2, -0.4, 0.2)}, "spec.training.split.train"),
        ({"split": Split(float("nan"), 0.5, 0.5)}, "spec.training.split"),
        ({"cpu": 0.0001}, "spec.resources.cpu"),
        ({"cpu": float("inf")}, "spec.resources.cpu"),
        ({"cpu": 1e17}, "spec.resources.cpu"),
        ({"priority": -(2**31)}, "spec.priority"),
        ({"priority": 2**31 - 1}, "spec.priority"),
        ({"deadline": timedelta(seconds=315_576_000_000)}, "spec.deadline"),
        ({"memory": -1}, "spec.resources.memory_bytes"),
        ({"gpu": -1}, "spec.resources.gpu"),
        ({"deadline": timedelta(seconds=-1)}, "spec.deadline"),
        ({"gates": [RULES.gates[0], Gate("recall", "test", None, None)]}, "spec.gates[1]"),
        ({"gates": [Gate("recall", "test", 0.9, 0.8)]}, "spec.gates[0].min"),
        ({"gates": [Gate("recall", "test", float("nan"), None)]}, "spec.gates[0].min"),
        ({"split": Split(1.0, 0.0, 0.0)}, "spec.gates[0].split"),
        ({"rollout": Rollout((), timedelta(0))}, "spec.deployment.rollout.steps"),
        ({"rollout": Rollout((50, 10, 100), timedelta(0))}, "spec.deployment.rollout.steps[1]"),
        ({"rollout": Rollout((10, 50), timedelta(0))}, "spec.deployment.rollout.steps[1]"),
        ({"rollout": Rollout((100,), timedelta(seconds=-1))}, "spec.deployment.rollout.hold"),
    ],
)
def test_what_makes_no_sense_is_named(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_pipeline(replace(RULES, **change))  # type: ignore[arg-type]
    assert caught.value.reason == "INVALID_PIPELINE"
    assert field in [violation.field for violation in caught.value.fields]
    assert caught.value.fields[0].field in caught.value.message


def test_every_mistake_is_listed_at_once() -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_pipeline(replace(RULES, gpu=-1, memory=-1))
    assert len(caught.value.fields) == 2


def test_what_a_pipeline_leaves_out_is_one_core_and_a_gibibyte() -> None:
    assert job_resources(0, 0, 0) == Resources(0, 1000, GIBIBYTE)
    assert job_resources(0.1, 5, 2) == Resources(2, 100, 5)
