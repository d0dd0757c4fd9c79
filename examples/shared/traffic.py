"""Users: calls that come all the time, with the truth about each a moment later."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import tritonclient.grpc.aio as triton
from aiokafka import AIOKafkaProducer
from examples.shared.predictions import features_of
from examples.shared.samples import FEEDBACK_TOPIC, Sample, feedback_records, send
from tritonclient.utils import InferenceServerException

AT_ONCE = 4
TOLD_TOGETHER = 40


@dataclass
class Seen:
    """Answers by version, of how many the truth was told, and failures in their words."""

    answered: Counter[str] = field(default_factory=Counter)
    labelled: int = 0
    failures: list[str] = field(default_factory=list)


@asynccontextmanager
async def users(
    address: str, bootstrap: str, model: str, samples: Sequence[Sample], pause: float = 0.0
) -> AsyncIterator[Seen]:
    """Ask for the samples again and again, and tell the true label of each, while the block runs.

    They pause for so many seconds after every four questions. Who has got an answer when the block ends still
    tells the truth about it.
    """
    seen, leaving = Seen(), asyncio.Event()
    asking = asyncio.create_task(_ask_all(address, bootstrap, model, samples, pause, seen, leaving))
    try:
        yield seen
    finally:
        leaving.set()
        await asking


async def _ask_all(
    address: str,
    bootstrap: str,
    model: str,
    samples: Sequence[Sample],
    pause: float,
    seen: Seen,
    leaving: asyncio.Event,
) -> None:
    async with (
        triton.InferenceServerClient(address) as client,
        AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer,
    ):
        labels: dict[str, int] = {}
        for first in itertools.cycle(range(0, len(samples), AT_ONCE)):
            some = samples[first : first + AT_ONCE]
            await asyncio.gather(*(_ask(client, model, sample, seen, labels) for sample in some))
            if len(labels) >= TOLD_TOGETHER or leaving.is_set():
                await send(producer, FEEDBACK_TOPIC, feedback_records(labels, model, ""))
                seen.labelled += len(labels)
                labels.clear()
            if leaving.is_set():
                return
            await asyncio.sleep(pause)


async def _ask(
    client: triton.InferenceServerClient, model: str, sample: Sample, seen: Seen, labels: dict[str, int]
) -> None:
    try:
        answer = await client.infer(
            model, [features_of(sample)], request_id=str(uuid.uuid4()), client_timeout=10
        )
    except InferenceServerException as error:
        seen.failures.append(str(error))
        return
    response = answer.get_response()
    seen.answered[response.model_version] += 1
    labels[response.id] = sample.malignant
