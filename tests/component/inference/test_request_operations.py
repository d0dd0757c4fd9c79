"""What operators do with requests over Kafka, and what requests ask for beside an answer, on real parts."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from tests.component.inference.conftest import MakePlane, Plane
from tests.component.inference.test_requests import (
    events_of,
    request,
    requests_of,
    responses,
    send,
    to_the_end,
    until_all_is_committed,
)
from tests.support.models import failing_classifier
from tests.support.services import ServiceProcess
from tests.support.waiting import eventually

from headrace.api.inference.v1 import inference_pb2, requests_pb2_grpc
from headrace.api.inference.v1 import requests_pb2 as api
from headrace.embedded.parts import free_port
from headrace.embedded.parts.process import http_get
from headrace.inference.use_cases.responses import ANSWERED, FAILED
from headrace.messaging.events import Event
from headrace.messaging.topics import (
    DEAD_LETTERS,
    INFERENCE_REQUESTS,
    INFERENCE_RESPONSES,
    Topic,
    ensure_topics,
    load_topics,
)
from headrace.telemetry import names

pytestmark = pytest.mark.broker


async def deploy(plane: Plane, name: str, model: bytes | None = None) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1, model=model)
    await plane.until_live(name, 1)


async def metrics(services: Sequence[ServiceProcess], name: str) -> list[float]:
    """The sum of a metric's series, in each service."""
    sums = []
    for service in services:
        _, body = await http_get(service.http_port, "/metrics")
        lines = [line for line in body.decode().splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        sums.append(sum(float(line.rsplit(" ", 1)[1]) for line in lines))
    return sums


async def until_known(stub: requests_pb2_grpc.RequestServiceAsyncStub, name: str, ids: set[str]) -> None:
    """Wait until requests have been read, and so are in work."""

    async def known() -> set[str]:
        listed = await stub.ListRequests(api.ListRequestsRequest(deployment=name, page_size=1000))
        return {one.id for one in listed.requests}

    await eventually(known, lambda found: ids <= found)


@contextmanager
def paused(plane: Plane) -> Iterator[None]:
    """Calls that come to Triton stay under way."""
    pid = plane.triton.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def another_instance(plane: Plane, folder: Path) -> AsyncIterator[ServiceProcess]:
    """A second service beside the plane's, which has some partitions of the requests."""
    xds = {"HEADRACE_INFERENCE_XDS_ADDRESS": f"127.0.0.1:{free_port()}"}
    other = ServiceProcess("inference", folder, plane.service.settings | xds)
    await other.start()
    try:
        number = 0

        async def ended() -> list[float]:
            nonlocal number
            number += 1
            # To no deployment: both are to have answered some, whatever the answer.
            await send(plane, *(request("nobody", f"{number}-{n}") for n in range(16)))
            return await metrics([plane.service, other], names.METRIC_INFERENCE_REQUESTS)

        await eventually(ended, all)
        await until_all_is_committed(plane)
        yield other
    finally:
        await other.stop()


async def test_what_is_cancelled_at_any_instance_is_told_and_answered_when_it_is_replayed(
    make_lone_plane: MakePlane, tmp_path: Path, name: str
) -> None:
    plane = await make_lone_plane()
    await deploy(plane, name)
    ids = {f"{name}-{number}" for number in range(40)}
    async with another_instance(plane, tmp_path / "other") as other, requests_of(plane) as stub:
        instances = [plane.service, other]
        with paused(plane):
            # None has a deadline: they would be under way for ever.
            await send(plane, *(request(name, request_id) for request_id in sorted(ids)))
            await until_known(stub, name, ids)
            await eventually(lambda: metrics(instances, names.METRIC_INFERENCE_REQUESTS_UNDER_WAY), all)
            for request_id in sorted(ids):
                cancelled = await stub.CancelRequest(api.CancelRequestRequest(id=request_id))
                assert cancelled.state == api.REQUEST_STATE_CANCELLED
            told = await responses(plane, name, ids)
        for request_id in sorted(ids):
            replayed = await stub.ReplayRequest(api.ReplayRequestRequest(id=request_id))
            assert (replayed.state, replayed.replays) == (api.REQUEST_STATE_RECEIVED, 1)
        answered = await responses(plane, name, ids, (ANSWERED,))
    assert {(event.type, json.loads(event.data)["code"]) for event in told} == {(FAILED, "CANCELLED")}
    answers = {event.id for event in answered}
    assert len(answers) == len(ids)
    assert answers.isdisjoint(event.id for event in told)


async def test_those_who_wait_have_their_turns_by_priority(make_lone_plane: MakePlane, name: str) -> None:
    plane = await make_lone_plane(
        HEADRACE_INFERENCE_REQUESTS_AT_ONCE="1", HEADRACE_INFERENCE_REQUEST_ROWS_MERGED="1"
    )
    await deploy(plane, name)
    low, high = ({f"{name}-{kind}-{number}" for number in range(20)} for kind in ("low", "high"))
    async with requests_of(plane) as stub:
        with paused(plane):
            await send(plane, *(request(name, request_id, priority="low") for request_id in sorted(low)))
            await until_known(stub, name, low)
            await send(plane, *(request(name, request_id, priority="high") for request_id in sorted(high)))
            await until_known(stub, name, high)
        answers = await responses(plane, name, low | high, (ANSWERED,))
    order = [event.extensions["requestid"] for event in sorted(answers, key=lambda event: event.time)]
    # One was under way before, and of seventeen that follow one is low.
    assert sum(request_id in low for request_id in order[: order.index(last_of(high, order))]) <= 3


def last_of(ids: set[str], order: Sequence[str]) -> str:
    return [request_id for request_id in order if request_id in ids][-1]


async def test_requests_of_one_order_are_answered_in_it_whoever_is_slow(
    make_lone_plane: MakePlane, name: str
) -> None:
    plane = await make_lone_plane()
    await deploy(plane, name)
    # Those to nobody would be answered at once, did they not wait for the ones to a Triton that does nothing.
    ordered = [
        request(deployment, f"{name}-{number}-{deployment}", ordered="true", partitionkey=name)
        for number in range(4)
        for deployment in (name, "nobody")
    ]
    loose = request("nobody", f"{name}-loose", partitionkey=name)
    with paused(plane):
        await send(plane, *ordered, loose)
        await responses(plane, "nobody", {loose.id})
    await until_all_is_committed(plane)
    told = await events_of(plane, load_topics()[INFERENCE_RESPONSES])
    assert [event.extensions["requestid"] for event in told] == [loose.id, *(event.id for event in ordered)]
    assert [event.type for event in told] == [FAILED, *(ANSWERED, FAILED) * 4]


def replies() -> Topic:
    template = load_topics()[INFERENCE_RESPONSES].model_dump()
    return Topic(**{**template, "name": "headrace.tests.replies.v1"})


async def test_answers_go_to_topics_that_are_allowed_and_failures_to_the_dead_letters_too(
    make_lone_plane: MakePlane, own_broker: str, name: str
) -> None:
    await ensure_topics(own_broker, [replies()])
    plane = await make_lone_plane(HEADRACE_INFERENCE_REPLY_TOPICS=json.dumps([replies().name]))
    await deploy(plane, name, failing_classifier())
    fine = request(name, f"{name}-fine", value=0.0, replyto=replies().name)
    foreign = request(name, f"{name}-foreign", replyto=DEAD_LETTERS)
    broken = request(name, f"{name}-broken", retries="1", replyto=replies().name)
    unnamed = request(name, f"{name}-" + "x" * 256)
    await send(plane, fine, foreign, broken, unnamed)
    await until_all_is_committed(plane)

    assert codes(await events_of(plane, load_topics()[INFERENCE_RESPONSES])) == {
        foreign.id: "REPLY_TOPIC_NOT_ALLOWED"
    }
    assert codes(await events_of(plane, replies())) == {fine.id: "", broken.id: "INTERNAL"}
    dead = {}
    for records in (await to_the_end(plane, load_topics()[DEAD_LETTERS])).values():
        for record in records:
            headers = dict(record.headers)
            assert headers["headrace-topic"] == INFERENCE_REQUESTS.encode()
            assert headers["headrace-message"]
            dead[headers["ce_id"].decode()] = headers["headrace-reason"].decode()
    assert dead == {foreign.id: "REPLY_TOPIC_NOT_ALLOWED", broken.id: "INTERNAL", unnamed.id: "INVALID_NAME"}


def codes(events: Sequence[Event]) -> dict[str, str]:
    """The reason of each failure, by its request; nothing for an answer."""
    return {event.extensions["requestid"]: json.loads(event.data).get("reason", "") for event in events}


async def test_a_stuck_deployment_fills_the_window_until_an_operator_ends_its_requests(
    make_lone_plane: MakePlane, name: str
) -> None:
    plane = await make_lone_plane(HEADRACE_INFERENCE_REQUESTS_IN_FLIGHT="8")
    await deploy(plane, name)
    plane.triton.kill()
    await plane.triton.wait()
    ids = [f"{name}-{number}" for number in range(8)]
    async with requests_of(plane) as stub:
        await send(plane, *(request(name, request_id) for request_id in ids))
        await until_known(stub, name, set(ids))
        behind = request("nobody", f"{name}-behind")
        await send(plane, behind)
        first = await stub.CancelRequest(api.CancelRequestRequest(id=ids[0]))
        await responses(plane, "nobody", {behind.id})
        found = await stub.GetRequest(api.GetRequestRequest(id=behind.id))
        assert found.receive_time.ToDatetime() >= first.end_time.ToDatetime()
        await plane.stub.DeleteDeployment(inference_pb2.DeleteDeploymentRequest(name=name))
        told = await responses(plane, name, set(ids), (FAILED,))
    reasons = codes(told)
    assert reasons.pop(ids[0]) == "CANCELLED"
    assert set(reasons.values()) == {"NOT_FOUND"}
