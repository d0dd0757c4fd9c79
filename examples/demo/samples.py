"""The Wisconsin Diagnostic Breast Cancer samples as CloudEvents, sent with an ordinary Kafka producer.

Nothing here is Headrace's: scikit-learn brings the data, aiokafka the producer. A CloudEvent in Kafka's
binary mode is a record with a few headers, so that any client in any language can do the same.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
from aiokafka import AIOKafkaProducer
from sklearn.datasets import load_breast_cancer

DATASET = "breast-cancer"
SAMPLES_TOPIC = "headrace.ingestion.samples.v1"
FEEDBACK_TOPIC = "headrace.inference.feedback.v1"
HELD_BACK = 100


@dataclass(frozen=True)
class Sample:
    """One patient: 30 measurements, and whether the tumour is malignant."""

    patient_id: str
    features: dict[str, float]
    malignant: int

    def to_json(self) -> bytes:
        """The event's payload: one flat JSON object."""
        row = {"patient_id": self.patient_id, **self.features, "malignant": self.malignant}
        return json.dumps(row).encode()


@dataclass(frozen=True)
class Record:
    """What is put on the topic."""

    key: str
    value: bytes
    headers: list[tuple[str, bytes]]


def load() -> tuple[list[Sample], list[Sample]]:
    """All 569 samples in a fixed random order: those to learn from, and the 100 held back."""
    data = load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in data.feature_names]
    samples = [
        Sample(
            patient_id=f"patient-{index:03}",
            features=dict(zip(names, map(float, data.data[index]), strict=True)),
            # scikit-learn calls malignant 0.
            malignant=int(data.target[index] == 0),
        )
        for index in np.random.default_rng(7).permutation(len(data.data))
    ]
    return samples[HELD_BACK:], samples[:HELD_BACK]


def event_headers(event_type: str, subject: str, traceparent: str = "") -> list[tuple[str, bytes]]:
    """CloudEvents 1.0 attributes as Kafka headers."""
    headers = {
        "ce_specversion": "1.0",
        "ce_id": str(uuid.uuid4()),
        "ce_source": "examples/demo",
        "ce_type": event_type,
        "ce_subject": subject,
        "ce_time": datetime.now(UTC).isoformat(),
        "content-type": "application/json",
    }
    if traceparent:
        headers["traceparent"] = traceparent
    return [(name, value.encode()) for name, value in headers.items()]


def sample_record(sample: Sample, traceparent: str) -> Record:
    """A sample as it should be sent."""
    headers = event_headers("headrace.ingestion.sample.v1", DATASET, traceparent)
    return Record(sample.patient_id, sample.to_json(), headers)


def break_five(records: Sequence[Record]) -> list[Record]:
    """The same records, the first five of them broken in five ways."""
    first, second, third, fourth, fifth, *rest = records
    row = json.loads(second.value)
    missing = {name: value for name, value in row.items() if name != "mean_texture"}
    negative = {**json.loads(third.value), "mean_radius": -1.0}
    unknown_class = {**json.loads(fourth.value), "malignant": 7}
    nowhere = [(k, b"no-such-dataset" if k == "ce_subject" else v) for k, v in fifth.headers]
    return [
        replace(first, value=first.value[:40]),
        replace(second, value=json.dumps(missing).encode()),
        replace(third, value=json.dumps(negative).encode()),
        replace(fourth, value=json.dumps(unknown_class).encode()),
        replace(fifth, headers=nowhere),
        *rest,
    ]


def with_true_radius(payload: bytes) -> bytes:
    """The sample with the radius that was measured."""
    row = json.loads(payload)
    learned_from, _ = load()
    [sample] = [sample for sample in learned_from if sample.patient_id == row["patient_id"]]
    return json.dumps({**row, "mean_radius": sample.features["mean_radius"]}).encode()


async def publish(bootstrap: str, topic: str, records: Sequence[Record]) -> None:
    """Send all records, and return when the broker has acknowledged each."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        pending = [
            await producer.send(topic, record.value, key=record.key.encode(), headers=record.headers)
            for record in records
        ]
        for acknowledged in pending:
            await acknowledged


def feedback_records(labels: dict[str, int], deployment: str, traceparent: str) -> list[Record]:
    """The true labels, by prediction id, as feedback events."""
    return [
        Record(
            prediction_id,
            json.dumps({"deployment": deployment, "prediction_id": prediction_id, "number": label}).encode(),
            event_headers("headrace.inference.feedback.v1", deployment, traceparent),
        )
        for prediction_id, label in labels.items()
    ]
