"""One mistake has one code, over gRPC, REST and Kafka: the table in docs/inference.md."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import grpc
import httpx
import numpy as np
import pytest
from tests.component.inference.conftest import MAX_REQUEST_BYTES, Plane
from tests.component.inference.test_requests import responses, send
from tests.support.models import failing_classifier
from tritonclient.grpc import service_pb2

from headrace.client.claim_checks import ClaimChecks
from headrace.events.inference.v1 import events_pb2
from headrace.messaging.events import JSON, PROTOBUF, Event

pytestmark = pytest.mark.broker

# Deployed once for all.
MODEL: Final = f"codes-{uuid.uuid4().hex[:8]}"
METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
# REST's way to say the same, for what is asked with a whole request.
STATUS: Final = {
    "OK": 200,
    "NOT_FOUND": 404,
    "INVALID_ARGUMENT": 400,
    "RESOURCE_EXHAUSTED": 413,
    "INTERNAL": 500,
}
NO_MESSAGE: Final = b"\7no request"
NO_DOCUMENT: Final = b'{"inputs": ['


@dataclass(frozen=True)
class Mistake:
    """What is asked instead of one right row.

    `payload`: bytes instead of a message and instead of a document. `late`: the deadline has passed, which
    REST has none of.
    """

    code: str
    model: str = ""
    version: str = ""
    name: str = "features"
    datatype: str = "FP32"
    rows: int = 1
    columns: int = 3
    value: float = 0.0
    id: str = ""
    payload: tuple[bytes, bytes] | None = None
    late: bool = False
    parameters: Mapping[str, str] = field(default_factory=dict)

    def values(self) -> np.ndarray[Any, Any]:
        kind = {"FP32": "<f4", "INT32": "<i4"}[self.datatype]
        return np.full((self.rows, self.columns), self.value, dtype=kind)

    def message(self, model: str) -> bytes:
        if self.payload is not None:
            return self.payload[0]
        values = self.values()
        message = service_pb2.ModelInferRequest(
            model_name=self.model or model, model_version=self.version, id=self.id
        )
        message.inputs.add(name=self.name, datatype=self.datatype, shape=values.shape)
        message.raw_input_contents.append(values.tobytes())
        for name, text in self.parameters.items():
            message.parameters[name].string_param = text
        return bytes(message.SerializeToString())

    def document(self) -> bytes:
        if self.payload is not None:
            return self.payload[1]
        values = self.values()
        tensor = {
            "name": self.name,
            "datatype": self.datatype,
            "shape": values.shape,
            "data": values.ravel().tolist(),
        }
        document: dict[str, object] = {"inputs": [tensor]}
        if self.id:
            document["id"] = self.id
        if self.parameters:
            document["parameters"] = dict(self.parameters)
        return json.dumps(document).encode()

    def event(self, model: str, content_type: str) -> Event:
        document = self.document()
        if self.version:
            document = json.dumps({**json.loads(document), "model_version": self.version}).encode()
        return Event(
            id=f"{model}-{uuid.uuid4()}",
            source="tests",
            type="headrace.inference.request.v1",
            subject=self.model or model,
            time=datetime.now(UTC),
            data=document if content_type == JSON else self.message(model),
            content_type=content_type,
            extensions={"deadline": "0"} if self.late else {"retries": "0"},
        )


MISTAKES: Final = {
    "none": Mistake("OK"),
    "no such model": Mistake("NOT_FOUND", model=f"nobody-{uuid.uuid4().hex[:8]}"),
    "a version without traffic": Mistake("NOT_FOUND", version="7"),
    "a tensor of another name": Mistake("INVALID_ARGUMENT", name="others"),
    "another type": Mistake("INVALID_ARGUMENT", datatype="INT32"),
    "another shape": Mistake("INVALID_ARGUMENT", columns=2),
    "an id above 256 bytes": Mistake("INVALID_ARGUMENT", id="x" * 257),
    "bytes that are no request": Mistake("INVALID_ARGUMENT", payload=(NO_MESSAGE, NO_DOCUMENT)),
    "larger than allowed": Mistake("RESOURCE_EXHAUSTED", rows=MAX_REQUEST_BYTES // 6),
    "the model raises": Mistake("INTERNAL", value=1.0),
    "the deadline has passed": Mistake("DEADLINE_EXCEEDED", late=True),
}


@pytest.fixture
async def model(plane: Plane) -> str:
    """A model that answers where its row's first value is 0, and raises elsewhere."""
    await plane.deploy(MODEL)
    await plane.promote(MODEL, 1, model=failing_classifier())
    await plane.until_live(MODEL, 1)
    return MODEL


@pytest.mark.parametrize("what", MISTAKES)
async def test_a_mistake_has_one_code_whatever_the_protocol(plane: Plane, model: str, what: str) -> None:
    mistake = MISTAKES[what]
    found = {"gRPC": await by_grpc(plane, model, mistake), **await by_kafka(plane, model, mistake)}
    assert found == dict.fromkeys(found, mistake.code)
    if not mistake.late:
        assert await by_rest(plane, model, mistake) == STATUS[mistake.code]


async def test_a_subject_that_nobody_could_erase_is_answered_and_refused_where_the_answer_is_kept(
    plane: Plane, model: str
) -> None:
    mistake = Mistake("OK", parameters={"subject": "x" * 4097})
    assert await by_grpc(plane, model, mistake) == "OK"
    assert await by_rest(plane, model, mistake) == 200
    assert set((await by_kafka(plane, model, mistake)).values()) == {"INVALID_ARGUMENT"}


async def by_grpc(plane: Plane, model: str, mistake: Mistake) -> str:
    async with grpc.aio.insecure_channel(plane.address) as opened:
        call = opened.unary_unary(METHOD)(mistake.message(model), timeout=1e-6 if mistake.late else 30)
        return str((await call.code()).name)


async def by_rest(plane: Plane, model: str, mistake: Mistake) -> int:
    version = f"/versions/{mistake.version}" if mistake.version else ""
    async with httpx.AsyncClient(base_url=f"http://{plane.address}", timeout=30) as client:
        answer = await client.post(
            f"/v2/models/{mistake.model or model}{version}/infer", content=mistake.document()
        )
    return answer.status_code


async def by_kafka(plane: Plane, model: str, mistake: Mistake) -> dict[str, str]:
    """The codes of a request as Protobuf, as JSON, and of each as a claim check."""
    plain = [mistake.event(model, form) for form in (PROTOBUF, JSON)]
    checks = ClaimChecks(plane.store)
    claimed = await asyncio.gather(*(checks.written(mistake.event(model, form)) for form in (PROTOBUF, JSON)))
    events = dict(
        zip(("Protobuf", "JSON", "claimed Protobuf", "claimed JSON"), [*plain, *claimed], strict=True)
    )
    # What is larger than a topic takes is a claim check or nothing.
    sent = {form: event for form, event in events.items() if len(event.data) < MAX_REQUEST_BYTES // 2}
    await send(plane, *sent.values())
    ids = {event.id for event in sent.values()}
    told = {
        event.extensions["requestid"]: event for event in await responses(plane, mistake.model or model, ids)
    }
    return {form: _code(told[event.id]) for form, event in sent.items()}


def _code(response: Event) -> str:
    if response.type == "headrace.inference.response.v1":
        return "OK"
    if response.content_type == JSON:
        return str(json.loads(response.data)["code"])
    return events_pb2.RequestFailed.FromString(response.data).code
