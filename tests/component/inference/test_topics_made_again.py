"""Topics that are deleted and made again while requests are answered and predictions are logged."""

from __future__ import annotations

import os
import uuid

import pytest
from tests.component.inference.conftest import Plane, ask
from tests.component.inference.test_requests import request, requests_of, responses, send
from tests.support.topics import create, delete, make_again
from tests.support.waiting import eventually

from headrace.api.inference.v1 import requests_pb2 as api
from headrace.inference.use_cases.responses import ANSWERED
from headrace.messaging.topics import INFERENCE_RESPONSES, PREDICTIONS, load_topics

pytestmark = pytest.mark.broker

COUNT = 20
KAFKA = os.environ.get("HEADRACE_TEST_BROKER") == "kafka"


def ids(name: str, when: str) -> set[str]:
    return {f"{name}-{when}-{uuid.uuid4().hex[:8]}" for _ in range(COUNT)}


async def live(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)


async def test_answers_go_to_a_responses_topic_that_was_made_again(plane: Plane, name: str) -> None:
    await live(plane, name)
    for when in ("before", "after"):
        asked = ids(name, when)
        await send(plane, *(request(name, one) for one in asked))
        told = await responses(plane, name, asked)
        assert {event.extensions["requestid"] for event in told} == asked
        assert {event.type for event in told} == {ANSWERED}
        if when == "before":
            await make_again(plane.bootstrap, load_topics()[INFERENCE_RESPONSES])


@pytest.mark.skipif(not KAFKA, reason="the embedded broker mixes up offsets of what came for a deleted topic")
async def test_answers_wait_for_a_responses_topic_that_is_made_again(plane: Plane, name: str) -> None:
    await live(plane, name)
    topic = load_topics()[INFERENCE_RESPONSES]
    before, meanwhile, after = ids(name, "before"), ids(name, "meanwhile"), ids(name, "after")
    await send(plane, *(request(name, one) for one in before))
    await responses(plane, name, before, (ANSWERED,))
    await delete(plane.bootstrap, topic)
    await send(plane, *(request(name, one) for one in meanwhile))
    async with requests_of(plane) as stub:

        async def states() -> set[int]:
            listed = await stub.ListRequests(api.ListRequestsRequest(deployment=name, page_size=1000))
            return {one.state for one in listed.requests if one.id in meanwhile}

        await eventually(states, lambda found: found == {api.REQUEST_STATE_ANSWERED})
    await create(plane.bootstrap, topic)
    await send(plane, *(request(name, one) for one in after))
    told = await responses(plane, name, meanwhile | after, (ANSWERED,))
    assert not before & {event.extensions["requestid"] for event in told}


async def test_predictions_are_logged_in_a_topic_that_was_made_again(plane: Plane, name: str) -> None:
    await live(plane, name)
    async with plane.client() as client:
        for when in ("before", "after"):
            asked = ids(name, when)
            for one in asked:
                await ask(client, name, request_id=one)
            await plane.until_logged(name, asked)
            if when == "before":
                await make_again(plane.bootstrap, load_topics()[PREDICTIONS])
