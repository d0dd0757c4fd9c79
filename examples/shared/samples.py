"""The Wisconsin Diagnostic Breast Cancer samples as CloudEvents, sent with an ordinary Kafka producer.

Nothing here is Headrace's: scikit-learn brings the data, aiokafka the producer. A CloudEvent in Kafka's
binary mode is a record with a few headers, so that any client in any language can do the same.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from aiokafka import AIOKafkaProducer
from sklearn.datasets import load_breast_cancer

SAMPLES_TOPIC = "headrace.ingestion.samples.v1"
FEEDBACK_TOPIC = "headrace.inference.feedback.v1"


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


def load(seed: int = 7) -> list[Sample]:
    """All 569 samples, in a random order that is the same each time."""
    data = load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in data.feature_names]
    return [
        Sample(
            patient_id=f"patient-{index:03}",
            features=dict(zip(names, map(float, data.data[index]), strict=True)),
            # scikit-learn calls malignant 0.
            malignant=int(data.target[index] == 0),
        )
        for index in np.random.default_rng(seed).permutation(len(data.data))
    ]


def event_headers(event_type: str, subject: str, traceparent: str = "") -> list[tuple[str, bytes]]:
    """CloudEvents 1.0 attributes as Kafka headers."""
    headers = {
        "ce_specversion": "1.0",
        "ce_id": str(uuid.uuid4()),
        "ce_source": "examples",
        "ce_type": event_type,
        "ce_subject": subject,
        "ce_time": datetime.now(UTC).isoformat(),
        "content-type": "application/json",
    }
    if traceparent:
        headers["traceparent"] = traceparent
    return [(name, value.encode()) for name, value in headers.items()]


def sample_record(dataset: str, sample: Sample, traceparent: str = "") -> Record:
    """A sample as it should be sent."""
    headers = event_headers("headrace.ingestion.sample.v1", dataset, traceparent)
    return Record(sample.patient_id, sample.to_json(), headers)


async def publish(bootstrap: str, topic: str, records: Sequence[Record]) -> None:
    """Send all records, and return when the broker has acknowledged each."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        await send(producer, topic, records)


async def send(producer: AIOKafkaProducer, topic: str, records: Sequence[Record]) -> None:
    """The same by a producer that is open."""
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
