"""What the SDK sends of requests over Kafka, and what it makes of their responses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from headrace.client import requesting
from headrace.client.claim_checks import ClaimChecks
from headrace.client.requesting import ANSWERED_TYPE, FAILED_TYPE, Requests
from headrace.errors import Aborted, DataLoss, DeadlineExceeded, InvalidArgument, NotFound, Unavailable
from headrace.events.inference.v1 import events_pb2
from headrace.messaging.events import JSON, PROTOBUF, Event, encode
from headrace.objects import ObjectStore
from headrace.objects.claims import StoredClaims

ROWS = np.array([[1.0, 2.0]], dtype=np.float32)


class Topic:
    """The topic of responses: whoever reads gets what was put there."""

    def __init__(self) -> None:
        self.records: asyncio.Queue[Event | Exception] = asyncio.Queue()

    async def seek_to_end(self) -> None:
        pass

    async def getmany(self, **_: object) -> dict[str, list[SimpleNamespace]]:
        event = await self.records.get()
        if isinstance(event, Exception):
            raise event
        headers, value = encode(event)
        record = SimpleNamespace(topic="responses", partition=0, offset=0, headers=headers, value=value)
        return {"responses/0": [record]}


@dataclass
class Setup:
    """A client's requests over a broker in memory."""

    topic: Topic
    folder: Path
    sent: list[tuple[str, Event]] = field(default_factory=list)

    async def publish(self, key: str, event: Event) -> None:
        self.sent.append((key, event))

    @asynccontextmanager
    async def requests(self) -> AsyncIterator[Requests]:
        async with AsyncExitStack() as opened:
            yield Requests("broker:1", opened, self.publish, self.claims)

    @property
    def store(self) -> ObjectStore:
        return ObjectStore.from_uri(self.folder.as_uri())

    def claims(self) -> StoredClaims:
        return StoredClaims(self.store, seconds=10)


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Setup:
    topic = Topic()

    @asynccontextmanager
    async def opened(*_: object) -> AsyncIterator[Topic]:
        yield topic

    monkeypatch.setattr(requesting, "_opened", opened)
    monkeypatch.setattr(requesting, "reader_client", lambda *_, **__: None)
    return Setup(topic, tmp_path)


async def submitted(requests: Requests, **changes: object) -> requesting.SubmittedRequest:
    asked: dict[str, object] = {
        "request_id": "r1",
        "source": "tests",
        "version": "",
        "subject": "",
        "segment": "",
        "priority": "normal",
        "deadline": None,
        "retries": None,
        "order": "",
    }
    return await requests.submit("live", ROWS, **{**asked, **changes})  # type: ignore[arg-type]


def response(request_id: str = "r1", label: float = 1) -> Event:
    message = service_pb2.ModelInferResponse(model_name="live", model_version="7", id=request_id)
    message.outputs.add(name="label", datatype="FP32", shape=[1, 1])
    message.raw_output_contents.append(np.array([label], dtype=np.float32).tobytes())
    return Event(
        id=f"answer-to-{request_id}",
        source="headrace/inference",
        type=ANSWERED_TYPE,
        subject="live",
        time=datetime.now(UTC),
        data=message.SerializeToString(),
        extensions={"requestid": request_id, "requestsource": "tests"},
    )


def failure(code: str, content_type: str = PROTOBUF) -> Event:
    message = events_pb2.RequestFailed(code=code, reason="WHY", error="for this", attempts=3)
    as_json = json.dumps({"code": code, "reason": "WHY", "error": "for this", "attempts": 3}).encode()
    data = as_json if content_type == JSON else message.SerializeToString()
    return replace(response(), type=FAILED_TYPE, data=data, content_type=content_type)


async def test_a_request_says_what_it_asks_for_in_its_attributes(setup: Setup) -> None:
    async with setup.requests() as requests:
        await submitted(requests)
        await submitted(
            requests,
            request_id="r2",
            subject="c-1",
            segment="ward=3",
            version="3",
            priority="high",
            deadline=timedelta(seconds=1.5),
            retries=0,
            order="customer-7",
        )
    (key, plain), (ordered_key, full) = setup.sent
    assert (key, plain.id, plain.source, plain.subject) == ("r1", "r1", "tests", "live")
    assert plain.extensions == {"priority": "normal"}
    assert full.extensions == {
        "priority": "high",
        "deadline": "1500",
        "retries": "0",
        "ordered": "true",
        "partitionkey": "customer-7",
    }
    assert ordered_key == "customer-7"
    message = service_pb2.ModelInferRequest.FromString(full.data)
    assert (message.model_name, message.model_version, message.id) == ("live", "3", "r2")
    assert message.parameters["subject"].string_param == "c-1"
    assert message.parameters["segment"].string_param == "ward=3"


async def test_an_answer_comes_to_whoever_waits_for_it(setup: Setup) -> None:
    async with setup.requests() as requests:
        first, second = await submitted(requests), await submitted(requests, request_id="r2")
        await setup.topic.records.put(replace(response("r3"), data=b"another's, not even read"))
        await setup.topic.records.put(response("r2", label=2))
        await setup.topic.records.put(response("r1", label=1))
        found = [await request.answer() for request in (first, second, second)]
    assert [prediction.prediction_id for prediction in found] == ["r1", "r2", "r2"]
    assert [prediction.outputs["label"].tolist() for prediction in found] == [[[1]], [[2]], [[2]]]
    assert found[0].version == "7"


async def test_one_who_waits_no_longer_leaves_the_answer_to_the_others(setup: Setup) -> None:
    async with setup.requests() as requests:
        request = await submitted(requests)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await request.answer()
        await setup.topic.records.put(response())
        assert (await request.answer()).version == "7"


@pytest.mark.parametrize("content_type", [PROTOBUF, JSON])
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", InvalidArgument),
        ("NOT_FOUND", NotFound),
        ("DEADLINE_EXCEEDED", DeadlineExceeded),
        ("CANCELLED", Aborted),
    ],
)
async def test_why_there_is_no_answer_is_raised(
    setup: Setup, code: str, kind: type[Exception], content_type: str
) -> None:
    async with setup.requests() as requests:
        request = await submitted(requests)
        await setup.topic.records.put(failure(code, content_type))
        with pytest.raises(kind, match="for this") as raised:
            await request.answer()
    assert getattr(raised.value, "reason", "") == "WHY"


async def test_a_large_answer_is_fetched_and_verified(setup: Setup) -> None:
    claimed = await ClaimChecks(setup.store).written(response())
    damaged = replace(claimed, extensions={**claimed.extensions, "datasize": "1"})
    async with setup.requests() as requests:
        assert (await requests.read(claimed)).result().version == "7"
        assert isinstance((await requests.read(damaged)).error, DataLoss)
        await setup.store.delete(setup.store.path(claimed.extensions["dataref"]))
        assert isinstance((await requests.read(claimed)).error, NotFound)


async def test_an_answer_in_json_is_the_same(setup: Setup) -> None:
    document = {
        "model_name": "live",
        "model_version": "7",
        "id": "",
        "outputs": [
            {"name": "label", "datatype": "INT64", "shape": [2], "data": [1, 2]},
            {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["benign"]},
        ],
    }
    event = replace(response(), data=json.dumps(document).encode(), content_type=JSON)
    async with setup.requests() as requests:
        prediction = (await requests.read(event)).result()
    assert prediction.prediction_id == "r1"
    assert prediction.outputs["label"].dtype == np.int64
    assert prediction.outputs["text"].tolist() == [["benign"]]


@pytest.mark.parametrize("name", ["request_id", "source", "order"])
async def test_a_name_that_nobody_would_answer_is_refused(setup: Setup, name: str) -> None:
    async with setup.requests() as requests:
        with pytest.raises(InvalidArgument) as raised:
            await submitted(requests, **{name: "x" * 257})
    assert raised.value.reason == "INVALID_NAME"
    assert setup.sent == []


async def test_who_waits_hears_that_the_client_was_closed(setup: Setup) -> None:
    async with setup.requests() as requests:
        request = await submitted(requests)
    with pytest.raises(Unavailable) as raised:
        await request.answer()
    assert raised.value.reason == "CLIENT_CLOSED"
