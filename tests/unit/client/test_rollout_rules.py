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
    rollout: {steps: [10, 100], hold: 30s, analysis: ANALYSIS}
"""


def analysis(text: str) -> scheduling.RolloutAnalysis:
    return pipeline_file.parse(FILE.replace("ANALYSIS", text)).request.spec.deployment.rollout.analysis


def test_everything_that_a_rollout_is_judged_by_is_read() -> None:
    found = analysis(
        "{error_rate: {max_increase: 0}, latency_p50: {max_ratio: 1.2}, latency_p99: {max_ratio: 1.5}, "
        "drift: {max_shift: 0.1}, quality: {metric: recall, max_drop: 0.02}, min_samples: 200, "
        "confidence: 0.95, longest_hold: 10m}"
    )
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
