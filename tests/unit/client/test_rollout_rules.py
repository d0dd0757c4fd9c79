from __future__ import annotations

from datetime import timedelta

import pytest

from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
from headrace.client import pipeline_file
from headrace.errors import InvalidArgument

FILE = """\
apiVersion: headrace.dev/v1
kind: Pipeline
metadata: {name: small}
spec:
  dataset:
    key: id
    features: {x: float32}
    label: {name: y, type: int8, classes: [0, 1]}
  training: {recipe: mlp}
  deployment:
    name: small
    rollout: {steps: [10, 100], hold: 30s, shadow: {}, analysis: ANALYSIS}
"""


def rollout(text: str) -> scheduling.RolloutSpec:
    text = FILE.replace("{steps: [10, 100], hold: 30s, shadow: {}, analysis: ANALYSIS}", text)
    return pipeline_file.parse(text).request.spec.deployment.rollout


def analysis(text: str) -> scheduling.RolloutAnalysis:
    return pipeline_file.parse(FILE.replace("ANALYSIS", text)).request.spec.deployment.rollout.analysis


def test_everything_that_a_rollout_is_judged_by_is_read() -> None:
    found = analysis(
        "{error_rate: {max_increase: 0}, latency_p50: {max_ratio: 1.2}, latency_p99: {max_ratio: 1.5}, "
        "drift: {max_shift: 0.1}, quality: {metric: recall, max_drop: 0.02}, min_samples: 200, "
        "disagreement: {max_share: 0.05, tolerance: 0.01}, confidence: 0.95, longest_hold: 10m}"
    )
    assert (found.disagreement.max_share, found.disagreement.tolerance) == (0.05, 0.01)
    assert found.HasField("error_rate")
    assert found.error_rate.max_increase == 0
    assert (found.latency_p50.max_ratio, found.latency_p99.max_ratio) == (1.2, 1.5)
    assert found.drift.max_shift == 0.1
    assert found.quality.metric == scheduling.RolloutAnalysis.QUALITY_METRIC_RECALL
    assert found.quality.max_drop == 0.02
    assert (found.min_samples, found.confidence) == (200, 0.95)
    assert found.longest_hold.ToTimedelta() == timedelta(minutes=10)


def test_what_is_left_out_stays_unset() -> None:
    found = analysis("{drift: {max_shift: 0}}")
    assert [field.name for field, _ in found.ListFields()] == ["drift"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{latency_p95: {max_ratio: 2}}", "did you mean 'latency_p50'|did you mean 'latency_p99'"),
        ("{error_rate: {}}", "max_increase"),
        ("{quality: {metric: f1, max_drop: 0.1}}", "accuracy, recall, precision"),
        ("{quality: {metric: recall}}", "max_drop"),
        ("{confidence: high}", "must be a number"),
    ],
)
def test_mistakes_are_told(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        analysis(text)


def test_who_is_asked_and_who_gets_the_new_version_is_read() -> None:
    found = rollout(
        "{steps: [0, 100], shadow: {share: 25, hold: 10m}, sticky: {header: x-user-id}, "
        "audience: {header: x-cohort, values: [beta, 7]}}"
    )
    assert list(found.steps) == [0, 100]
    assert (found.shadow.share, found.shadow.hold.ToTimedelta()) == (25, timedelta(minutes=10))
    assert found.sticky.header == "x-user-id"
    assert (found.audience.header, list(found.audience.values)) == ("x-cohort", ["beta", "7"])


def test_a_shadow_is_asked_everything_and_as_long_as_a_step_where_nothing_else_is_said() -> None:
    found = rollout("{hold: 30s, shadow: {}}")
    assert found.shadow.share == 100
    assert not found.shadow.HasField("hold")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{steps: [0, 100]}", "must be rising percentages"),
        ("{sticky: {}}", "header"),
        ("{audience: {header: x-cohort}}", "values"),
        ("{shadow: {percent: 10}}", "percent"),
        ("{analysis: {disagreement: {max_share: 0.1}}}", "needs a shadow"),
    ],
)
def test_mistakes_about_who_is_asked_are_told(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        rollout(text)
