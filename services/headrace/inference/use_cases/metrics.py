"""What the service counts."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from headrace.telemetry import names

LEADER: Final = Gauge(names.METRIC_INFERENCE_LEADER, "1 where this instance reconciles")
DEPLOYMENTS: Final = Gauge(names.METRIC_INFERENCE_DEPLOYMENTS, "Deployments, as the leader sees them")
TRITON_UP: Final = Gauge(names.METRIC_INFERENCE_TRITON_UP, "1 while Triton answers the leader")
ROLLOUTS: Final = Counter(
    names.METRIC_INFERENCE_ROLLOUTS.removesuffix("_total"), "Rollouts that ended, by state", ["state"]
)
LOAD_SECONDS: Final = Histogram(
    names.METRIC_INFERENCE_LOAD_SECONDS,
    "From fetching a version to its readiness in Triton",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
ENVOYS: Final = Gauge(names.METRIC_INFERENCE_ENVOYS, "Envoys connected to this instance")
PUSHES: Final = Counter(
    names.METRIC_INFERENCE_XDS_PUSHES.removesuffix("_total"),
    "Configurations sent to Envoys, by resource",
    ["resource"],
)
REJECTIONS: Final = Counter(
    names.METRIC_INFERENCE_XDS_REJECTIONS.removesuffix("_total"),
    "Configurations that an Envoy refused, by resource",
    ["resource"],
)
PREDICTIONS: Final = Counter(
    names.METRIC_INFERENCE_PREDICTIONS.removesuffix("_total"), "Predictions stored in the log"
)
DRIFT_WINDOWS: Final = Counter(
    names.METRIC_INFERENCE_DRIFT_WINDOWS.removesuffix("_total"),
    "Windows of requests that were compared with training data, drifting or calm",
    ["result"],
)
DRIFT_EPISODES: Final = Counter(
    names.METRIC_INFERENCE_DRIFT_EPISODES.removesuffix("_total"),
    "Episodes of drift that begun or ended",
    ["change"],
)
FEEDBACK: Final = Counter(names.METRIC_INFERENCE_FEEDBACK.removesuffix("_total"), "True labels stored")
REPLICAS: Final = Gauge(
    names.METRIC_INFERENCE_REPLICAS,
    "Servers that a deployment is to be on, as the leader says",
    ["deployment"],
)
NO_ROOM: Final = Counter(
    names.METRIC_INFERENCE_NO_ROOM.removesuffix("_total"),
    "Passes in which no server had the memory that a deployment takes",
    ["deployment"],
)
WAKE_SECONDS: Final = Histogram(
    names.METRIC_INFERENCE_WAKE_SECONDS,
    "How long requests waited for a deployment that was loaded nowhere",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
