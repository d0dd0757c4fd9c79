"""The platform's topics: names as constants, everything else in `deploy/kafka/topics/<topic>.yaml`."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Final

import yaml
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError, NoError, TopicAlreadyExistsError, for_code
from pydantic import BaseModel, ConfigDict, Field, field_validator

from headrace.runtime.resources import deploy_path

logger = logging.getLogger(__name__)

SAMPLES: Final = "headrace.ingestion.samples.v1"
REJECTED_SAMPLES: Final = "headrace.ingestion.rejected-samples.v1"
DATASET_VERSIONS: Final = "headrace.ingestion.dataset-versions.v1"
ERASURES: Final = "headrace.ingestion.erasures.v1"
INGESTION_ALERTS: Final = "headrace.ingestion.alerts.v1"
JOBS: Final = "headrace.scheduling.jobs.v1"
RUNS: Final = "headrace.training.runs.v1"
MODEL_VERSIONS: Final = "headrace.registry.model-versions.v1"
DEPLOYMENTS: Final = "headrace.inference.deployments.v1"
PREDICTIONS: Final = "headrace.inference.predictions.v1"
FEEDBACK: Final = "headrace.inference.feedback.v1"
INFERENCE_REQUESTS: Final = "headrace.inference.requests.v1"
INFERENCE_RESPONSES: Final = "headrace.inference.responses.v1"
INFERENCE_ALERTS: Final = "headrace.inference.alerts.v1"
DEAD_LETTERS: Final = "headrace.platform.dead-letters.v1"

CONNECT_SECONDS = 30.0
RETRY_SECONDS = 0.2
BROKERS_DEFAULT: Final = -1

_DURATION = re.compile(r"^(\d+)(s|m|h|d)$")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Topic(BaseModel):
    """One topic file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    owner: str
    producers: list[str]
    consumers: list[str]
    # Protobuf messages' full names; several where ce_type tells them apart.
    payload: list[str]
    content_types: list[str]
    key: str
    partitions: int = Field(gt=0)
    # "7d", "12h"; "forever".
    retention: str
    dead_letter: str | None = None

    @field_validator("retention")
    @classmethod
    def _is_a_duration(cls, text: str) -> str:
        _milliseconds(text)
        return text

    @property
    def retention_ms(self) -> int:
        """Kafka's retention.ms."""
        return _milliseconds(self.retention)


def load_topics(folder: Path | None = None) -> dict[str, Topic]:
    """Every topic file, by topic name."""
    files = sorted((folder or deploy_path("kafka/topics")).glob("*.yaml"))
    topics = [Topic.model_validate(yaml.safe_load(file.read_text())) for file in files]
    return {topic.name: topic for topic in topics}


def _milliseconds(duration: str) -> int:
    if duration == "forever":
        return -1
    match = _DURATION.match(duration)
    if match is None:
        raise ValueError(f"{duration!r} is neither like 7d nor forever")
    return timedelta(**{_UNITS[match[2]]: int(match[1])}) // timedelta(milliseconds=1)


async def ensure_topics(bootstrap: str, topics: Iterable[Topic]) -> list[str]:
    """Create the topics that are missing; return their names. Waits up to 30 s for a starting broker."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + CONNECT_SECONDS
    while True:
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        try:
            await admin.start()
            break
        except KafkaConnectionError:
            await admin.close()
            if loop.time() > deadline:
                raise
            await asyncio.sleep(RETRY_SECONDS)
    try:
        existing = set(await admin.list_topics())
        missing = [topic for topic in topics if topic.name not in existing]
        if not missing:
            return []
        response = await admin.create_topics([_new(topic) for topic in missing])
        created = []
        for name, code, *_ in response.topic_errors:
            if code == NoError.errno:
                created.append(name)
            elif for_code(code) is not TopicAlreadyExistsError:
                raise for_code(code)(f"topic {name} was not created")
        return created
    finally:
        await admin.close()


def _new(topic: Topic) -> NewTopic:
    new = NewTopic(
        name=topic.name,
        num_partitions=topic.partitions,
        replication_factor=1,
        topic_configs={
            "retention.ms": str(topic.retention_ms),
            # Retention counts from the arrival: a producer's own time, where it replays the
            # past, would have its events deleted before anyone has read them.
            "message.timestamp.type": "LogAppendTime",
        },
    )
    # How often a cluster keeps a record is its own to say. aiokafka's constructor would refuse that.
    new.replication_factor = BROKERS_DEFAULT
    return new
