"""Requests over Kafka, with a real broker, PostgreSQL, Triton and Envoy."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.component.inference.conftest import DEADLINE, MakePlane, Plane

from headrace.api.inference.v1 import requests_pb2 as api
from headrace.api.inference.v1 import requests_pb2_grpc
from headrace.inference.use_cases.responses import ANSWERED, FAILED
from headrace.messaging.client import consumer_client
from headrace.messaging.events import Event, decode
from headrace.messaging.producer import Producer
from headrace.messaging.topics import INFERENCE_REQUESTS, INFERENCE_RESPONSES
from headrace.rpc.client import channel

pytestmark = pytest.mark.broker

FAULT_POINTS = (
    "inference.after-request-stored",
    "inference.before-request-sent",
    "inference.after-answer-stored",
    "inference.after-answer-published",
)


def request(deployment: str, request_id: str, *, columns: int = 3, **extensions: str) -> Event:
    document = {
        "inputs": [{"name": "features", "shape": [1, columns], "datatype": "FP32", "data": [1.0] * columns}]
    }
    return Event(
        id=request_id,
        source="tests",
        type="headrace.inference.request.v1",
        subject=deployment,
        time=datetime.now(UTC),
        data=json.dumps(document).encode(),
        content_type="application/json",
        extensions=extensions,
    )


async def send(plane: Plane, *events: Event) -> None:
    async with Producer(plane.bootstrap, client_id="tests", idempotence=False) as producer:
        await producer.publish_all(INFERENCE_REQUESTS, [(event.id, event) for event in events])


async def responses(
    plane: Plane, deployment: str, ids: set[str], kinds: tuple[str, ...] = (ANSWERED, FAILED)
) -> list[Event]:
    """Every response to the deployment's requests, read until there is one to each of these."""
    client = consumer_client(plane.bootstrap, group=f"tests-{uuid.uuid4()}", client_id="tests")
    client.subscribe([INFERENCE_RESPONSES])
    await client.start()
    found: list[Event] = []
    try:
        async with asyncio.timeout(DEADLINE):
            while not ids <= {event.extensions["requestid"] for event in found}:
                for records in (await client.getmany(timeout_ms=200)).values():
                    events = [decode(it.headers, it.value, received=datetime.now(UTC)) for it in records]
                    found += [it for it in events if it.subject == deployment and it.type in kinds]
    finally:
        await client.stop()
    return found


@asynccontextmanager
async def requests_of(plane: Plane) -> AsyncIterator[requests_pb2_grpc.RequestServiceAsyncStub]:
    async with channel(plane.service.target) as opened:
        yield requests_pb2_grpc.RequestServiceStub(opened)


async def test_requests_are_answered_told_what_is_wrong_and_found(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    good, wrong, late = (f"{name}-{kind}" for kind in ("good", "wrong", "late"))
    await send(
        plane,
        request(name, good),
        request(name, good),
        request(name, wrong, columns=2),
        request(name, late, deadline="2020-01-01T00:00:00Z"),
    )
    by_id = {
        event.extensions["requestid"]: event for event in await responses(plane, name, {good, wrong, late})
    }
    answer = json.loads(by_id[good].data)
    assert (answer["model_version"], answer["id"]) == ("1", good)
    assert {output["name"]: output["data"] for output in answer["outputs"]}["label"] == [0]
    assert json.loads(by_id[wrong].data)["code"] == "INVALID_ARGUMENT"
    assert "expected" in json.loads(by_id[wrong].data)["error"]
    assert json.loads(by_id[late].data)["code"] == "DEADLINE_EXCEEDED"
    await plane.until_logged(name, {good})
    async with requests_of(plane) as stub:
        found = await stub.GetRequest(api.GetRequestRequest(id=good))
        assert (found.state, found.version) == (api.REQUEST_STATE_ANSWERED, "1")
        failed = await stub.ListRequests(
            api.ListRequestsRequest(deployment=name, state=api.REQUEST_STATE_FAILED)
        )
        assert [row.id for row in failed.requests] == [wrong]
        replayed = await stub.ReplayRequest(api.ReplayRequestRequest(id=wrong))
        assert (replayed.state, replayed.replays) == (api.REQUEST_STATE_RECEIVED, 1)


@pytest.mark.parametrize("point", FAULT_POINTS)
async def test_an_answer_survives_the_death_of_its_service(
    make_plane: MakePlane, name: str, point: str, tmp_path: Path
) -> None:
    plane = await make_plane()
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    # Only now: before, it may have read other tests' requests.
    await plane.service.stop()
    plane.service.settings |= {
        "HEADRACE_FAULT": f"{point}:20",
        "HEADRACE_FAULT_ONCE": str(tmp_path / "died"),
    }
    await plane.service.start()
    ids = {f"{name}-{number}" for number in range(50)}
    await send(plane, *(request(name, request_id) for request_id in sorted(ids)))
    await plane.service.killed()
    await plane.service.start()
    # Another test's service reads the topic too, and knows no such deployment.
    found = await responses(plane, name, ids, (ANSWERED,))
    by_id: dict[str, set[tuple[str, bytes]]] = {}
    for event in found:
        by_id.setdefault(event.extensions["requestid"], set()).add((event.id, event.data))
    assert set(by_id) == ids
    assert all(len(answers) == 1 for answers in by_id.values())
