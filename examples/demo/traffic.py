"""Users: calls that come all the time, with the truth about each a moment later."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import tritonclient.grpc.aio as triton
from predictions import features_of
from samples import FEEDBACK_TOPIC, Sample, feedback_records, publish
from tritonclient.utils import InferenceServerException

AT_ONCE = 4


@dataclass
class Seen:
    """What the users saw: answers by version, and failures in their words."""

    answered: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


@asynccontextmanager
async def users(address: str, bootstrap: str, model: str, samples: Sequence[Sample]) -> AsyncIterator[Seen]:
    """Ask for the samples again and again, and tell the true label of each, while the block runs."""
    seen = Seen()
    asking = asyncio.create_task(_ask_all(address, bootstrap, model, samples, seen))
    try:
        yield seen
    finally:
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking


async def _ask_all(address: str, bootstrap: str, model: str, samples: Sequence[Sample], seen: Seen) -> None:
    async with triton.InferenceServerClient(address) as client:
        while True:
            labels: dict[str, int] = {}
            for first in range(0, len(samples), AT_ONCE):
                some = samples[first : first + AT_ONCE]
                await asyncio.gather(*(_ask(client, model, sample, seen, labels) for sample in some))
            await publish(bootstrap, FEEDBACK_TOPIC, feedback_records(labels, model, ""))


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
