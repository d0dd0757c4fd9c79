"""Predictions through Envoy with a stock tritonclient: the Open Inference Protocol, nothing of Headrace's."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tritonclient.grpc as triton
from examples.shared.samples import Sample


@dataclass(frozen=True)
class Outcome:
    """What the model said of the held-back samples."""

    predicted: list[int]
    # By prediction id, in the order of the calls.
    true_labels: dict[str, int]
    seconds: list[float]
    versions: set[str]

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        truth = np.array(list(self.true_labels.values()))
        return float((np.array(self.predicted) == truth).mean())

    @property
    def recall(self) -> float:
        """Share of the malignant ones that were found."""
        truth = np.array(list(self.true_labels.values()))
        return float((np.array(self.predicted)[truth == 1] == 1).mean())

    def percentile(self, share: float) -> float:
        """Latency in milliseconds below which `share` per cent of the calls stayed."""
        return float(np.percentile(self.seconds, share) * 1000)


def features_of(sample: Sample) -> triton.InferInput:
    """A sample as the model's input, `features`: float32 [1, 30]."""
    row = np.array([list(sample.features.values())], dtype=np.float32)
    tensor = triton.InferInput("features", row.shape, "FP32")
    tensor.set_data_from_numpy(row)
    return tensor


def predict(address: str, model: str, samples: Sequence[Sample], traceparent: str) -> Outcome:
    """Ask for one sample at a time; the first call continues the caller's trace."""
    predicted, labels, seconds, versions = [], {}, [], set()
    with triton.InferenceServerClient(address) as client:
        for position, sample in enumerate(samples):
            prediction_id = str(uuid.uuid4())
            started = time.perf_counter()
            answer = client.infer(
                model,
                [features_of(sample)],
                request_id=prediction_id,
                headers={"traceparent": traceparent} if position == 0 and traceparent else None,
            )
            seconds.append(time.perf_counter() - started)
            predicted.append(int(answer.as_numpy("label").item()))
            labels[answer.get_response().id] = sample.malignant
            versions.add(answer.get_response().model_version)
    return Outcome(predicted, labels, seconds, versions)
