from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
from google.protobuf import descriptor_pb2

from headrace.errors import Unavailable
from headrace.ingestion.domain.avro import UnusableSchema
from headrace.ingestion.schema_registry import HttpSchemaRegistry, schema_registry
from headrace.ingestion.settings import Settings
from headrace.ingestion.use_cases.ports import RegisteredSchema

UNKNOWN = httpx.Response(404, json={"error_code": 40403, "message": "Schema not found"})


@asynccontextmanager
async def registry(
    answer: Callable[[httpx.Request], httpx.Response], kept: int = 10
) -> AsyncIterator[HttpSchemaRegistry]:
    transport = httpx.MockTransport(answer)
    async with httpx.AsyncClient(base_url="http://registry/api/v7", transport=transport) as client:
        yield HttpSchemaRegistry(client, kept=kept)


async def test_an_id_is_asked_for_once_while_it_is_kept_and_each_time_while_it_is_unknown() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return UNKNOWN if request.url.path.endswith("/3") else httpx.Response(200, json={"schema": "s"})

    async with registry(answer, kept=2) as schemas:
        known = RegisteredSchema("AVRO", "s")
        assert await schemas.schemas({1, 3}) == {1: known}
        assert await schemas.schemas({1, 3}) == {1: known}
        assert asked.count("/api/v7/schemas/ids/1") == 1
        assert asked.count("/api/v7/schemas/ids/3") == 2
        # 1 was wanted longest ago.
        assert await schemas.schemas([2, 4]) == {2: known, 4: known}
        asked.clear()
        assert await schemas.schemas([4, 1]) == {4: known, 1: known}
        assert asked == ["/api/v7/schemas/ids/1"]


async def test_formats_and_references_are_told() -> None:
    body = {"schema": "s", "schemaType": "PROTOBUF", "references": [{"name": "other", "subject": "o"}]}
    async with registry(lambda _: httpx.Response(200, json=body)) as schemas:
        assert await schemas.schemas([1]) == {1: RegisteredSchema("PROTOBUF", "s", ("other",))}


async def test_protobuf_is_compiled_once_or_it_is_told_why_it_cannot_be() -> None:
    definitions = {"/1": 'syntax = "proto3"; message M {}', "/2": "message {"}

    def answer(request: httpx.Request) -> httpx.Response:
        definition = definitions[request.url.path[-2:]]
        return httpx.Response(200, json={"schema": definition, "schemaType": "PROTOBUF"})

    async with registry(answer) as schemas:
        found = await schemas.schemas([1, 2])
        assert isinstance(found[1].descriptors, bytes)
        files = descriptor_pb2.FileDescriptorSet.FromString(found[1].descriptors).file
        assert [message.name for message in files[-1].message_type] == ["M"]
        assert isinstance(found[2].descriptors, UnusableSchema)
        assert found[2].descriptors.rule == "protobuf"
        again = await schemas.schemas([1])
        assert again[1].descriptors is found[1].descriptors


async def test_an_id_beyond_all_that_registries_give_is_unknown_without_asking() -> None:
    async with registry(lambda _: httpx.Response(500)) as schemas:
        assert await schemas.schemas([2**31]) == {}


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(500),
        httpx.Response(503, json={"error_code": 40403}),
        httpx.Response(401, json={"error_code": 40101}),
        httpx.Response(404, text="<h1>Not Found</h1>"),
        httpx.Response(404, json={"error_code": 404}),
        httpx.Response(200, text="<h1>It works</h1>"),
        httpx.Response(302, headers={"location": "/login"}),
    ],
    ids=lambda response: str(response.status_code),
)
async def test_another_answer_decides_nothing(response: httpx.Response) -> None:
    async with registry(lambda _: response) as schemas:
        with pytest.raises(Unavailable) as caught:
            await schemas.schemas([1])
    assert caught.value.reason == "SCHEMA_REGISTRY_UNAVAILABLE"


async def test_silence_decides_nothing() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("", request=request)

    async with registry(answer) as schemas:
        with pytest.raises(Unavailable, match="ReadTimeout"):
            await schemas.schemas([1])


async def test_the_password_is_in_no_setting_that_is_printed() -> None:
    settings = Settings(schema_registry_password="do-not-tell")  # type: ignore[arg-type]
    assert "do-not-tell" not in repr(settings)


async def test_without_an_address_there_is_no_registry() -> None:
    async with schema_registry(Settings()) as none:
        assert none is None
