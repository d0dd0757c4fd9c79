"""What the platform says of a deployment: its quality, its drift, and what alerts led to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer
from examples.shared.waiting import DEADLINE_SECONDS, within

from headrace.api.inference.v1 import drift_pb2, inference_pb2
from headrace.api.scheduling.v1 import drift_pb2 as retraining_pb2
from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.cli.plain import plain
from headrace.client import HeadraceClient
from headrace.errors import NotFound
from headrace.events.inference.v1.events_pb2 import DriftDetected
from headrace.messaging.topics import INFERENCE_ALERTS

DRIFT_DETECTED = b"headrace.inference.drift-detected.v1"
# What is answered, among the columns.
PREDICTION = "prediction"


@dataclass(frozen=True)
class Answers:
    """Answers of which the truth is known."""

    labelled: int = 0
    right: int = 0

    @property
    def accuracy(self) -> float:
        """Share of right ones."""
        return self.right / self.labelled if self.labelled else 0.0

    def since(self, before: Answers) -> Answers:
        """What has come since."""
        return Answers(self.labelled - before.labelled, self.right - before.right)


async def knows(client: HeadraceClient, pipeline: str) -> bool:
    """Whether the pipeline has been applied before."""
    try:
        await client.scheduling.GetPipeline(scheduling_pb2.GetPipelineRequest(name=pipeline))
    except NotFound:
        return False
    return True


async def answers(client: HeadraceClient, deployment: str, version: int) -> Answers:
    """A version's answers so far, by the feedback that has arrived."""
    quality = await client.inference.GetQuality(inference_pb2.GetQualityRequest(deployment=deployment))
    for one in quality.versions:
        if one.version == version and one.feedback_count:
            return Answers(one.feedback_count, round(one.feedback_count * one.metrics["accuracy"]))
    return Answers()


async def drift(client: HeadraceClient, deployment: str) -> drift_pb2.Drift:
    """How the deployment stands."""
    return await client.drift.GetDrift(drift_pb2.GetDriftRequest(deployment=deployment))


def largest_index(window: drift_pb2.DriftWindow) -> float:
    """The largest stability index of a window's columns."""
    return max((one.psi for one in window.findings), default=0.0)


async def retrainings(client: HeadraceClient, pipeline: str) -> list[retraining_pb2.Retraining]:
    """What the pipeline's alerts led to, newest first."""
    found = await client.scheduling.GetPipeline(scheduling_pb2.GetPipelineRequest(name=pipeline))
    return list(found.retrainings)


async def alert(bootstrap: str, deployment: str) -> DriftDetected:
    """The deployment's first alert, read from its topic as any consumer would."""
    consumer = AIOKafkaConsumer(INFERENCE_ALERTS, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with within(DEADLINE_SECONDS, f"an alert on {INFERENCE_ALERTS}"):
            async for record in consumer:
                headers = dict(record.headers)
                if (headers["ce_type"], headers["ce_subject"]) == (DRIFT_DETECTED, deployment.encode()):
                    return DriftDetected.FromString(record.value)
    finally:
        await consumer.stop()
    raise RuntimeError(f"{INFERENCE_ALERTS} is not read any more")


async def standing(client: HeadraceClient, name: str) -> str:
    """How drift, retraining and rollout stand, in the platform's words."""
    found = await drift(client, name)
    watched = plain(found)
    index = largest_index(found.window)
    told = [f"drift: {watched['state']} {watched['message']} (largest index of the last window {index:.2f})"]
    told += [
        f"retraining: {one['state']} {one['reason']} {one['message']}"
        for one in map(plain, await retrainings(client, name))
    ]
    request = inference_pb2.GetDeploymentRequest(name=name)
    rollout = plain((await client.inference.GetDeployment(request)).rollout)
    told.append(f"rollout: {rollout['state']} {rollout['message']}")
    return "; ".join(" ".join(text.split()) for text in told)


@asynccontextmanager
async def explained(client: HeadraceClient, name: str) -> AsyncIterator[None]:
    """Where the block waits in vain, the error says how drift, retraining and rollout stand."""
    try:
        yield
    except TimeoutError as error:
        raise TimeoutError(f"{error}; {await standing(client, name)}") from None
