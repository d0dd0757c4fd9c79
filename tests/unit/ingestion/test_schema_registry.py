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

UNKNOWN_SUBJECT = httpx.Response(404, json={"error_code": 40401, "message": "Subject not found"})
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


class Stored:
    """A registry with these schemas: `ids1` is that of id 1, `a1` version 1 of the subject a."""

    def __init__(self, **schemas: httpx.Response) -> None:
        self.schemas = schemas
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/api/v7/")
        name = path.replace("schemas/ids/", "ids").removeprefix("subjects/").replace("/versions/", "")
        self.asked.append(name)
        return self.schemas.get(name, UNKNOWN_SUBJECT)


def stored(definition: str, *references: str, kind: str = "AVRO") -> httpx.Response:
    """A schema that refers to others, each by the name of its subject, in version 1."""
    listed = [{"name": name, "subject": name, "version": 1} for name in references]
    return httpx.Response(200, json={"schema": definition, "schemaType": kind, "references": listed})


async def found(answers: Stored) -> RegisteredSchema:
    async with registry(answers) as schemas:
        return (await schemas.schemas([1]))[1]


async def test_what_a_schema_refers_to_is_asked_for_once_with_all_that_it_refers_to() -> None:
    answers = Stored(
        ids1=stored("main", "a", "b"), a1=stored("A", "c"), b1=stored("B", "c", "a"), c1=stored("C")
    )
    async with registry(answers) as schemas:
        for _ in range(2):
            assert await schemas.schemas([1]) == {1: RegisteredSchema("AVRO", "main", ("A", "B", "C"))}
    assert answers.asked == ["ids1", "a1", "b1", "c1"]


async def test_a_subject_may_be_called_anything() -> None:
    reference = {"name": "a", "subject": "../ids/2?x#é", "version": 1}
    asked: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.raw_path)
        body = {"schema": "s", "references": [reference] if len(asked) == 1 else []}
        return httpx.Response(200, json=body)

    async with registry(answer) as schemas:
        await schemas.schemas([1])
    assert asked[1] == b"/api/v7/subjects/..%2Fids%2F2%3Fx%23%C3%A9/versions/1"


async def test_schemas_that_refer_to_each_other_have_an_end() -> None:
    answers = Stored(ids1=stored("main", "a"), a1=stored("A", "b"), b1=stored("B", "a"))
    assert (await found(answers)).references == ("A", "B")


@pytest.mark.parametrize("code", [40401, 40402])
async def test_what_is_not_there_makes_a_schema_unusable_until_it_is(code: int) -> None:
    gone = httpx.Response(404, json={"error_code": code})
    answers = Stored(ids1=stored("main", "a"), a1=gone)
    async with registry(answers) as schemas:
        unusable = (await schemas.schemas([1]))[1].unusable
        assert isinstance(unusable, UnusableSchema)
        assert unusable.rule == "references"
        assert "a, version 1 of the subject a, which the schema registry has not got" in unusable.message
        answers.schemas["a1"] = stored("A")
        assert (await schemas.schemas([1]))[1] == RegisteredSchema("AVRO", "main", ("A",))


@pytest.mark.parametrize("status", [404, 500])
async def test_an_outage_of_what_it_refers_to_is_an_outage(status: int) -> None:
    answers = Stored(ids1=stored("main", "a"), a1=httpx.Response(status))
    with pytest.raises(Unavailable, match="subjects/a/versions/1"):
        await found(answers)


def chain(length: int) -> Stored:
    links = {f"s{number}1": stored(f"S{number}", f"s{number + 1}") for number in range(length)}
    return Stored(ids1=stored("main", "s0"), **links, **{f"s{length}1": stored("last")})


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        (chain(20), "more than 16 deep"),
        (Stored(ids1=stored("main", *(f"s{number}" for number in range(101)))), "more than 100 others"),
        (Stored(ids1=stored("main", "a"), a1=stored("x" * (1 << 20), "b"), b1=stored("y")), "characters"),
        (
            Stored(
                ids1=httpx.Response(
                    200,
                    json={
                        "schema": "main",
                        "references": [{"name": "a", "subject": "a", "version": 1}],
                    },
                ),
                a1=httpx.Response(
                    200,
                    json={"schema": "A", "references": [{"name": "a", "subject": "b", "version": 1}]},
                ),
                b1=stored("B"),
            ),
            "two schemas by one name, a",
        ),
    ],
    ids=["depth", "count", "size", "name"],
)
async def test_what_a_schema_refers_to_has_bounds(answers: Stored, says: str) -> None:
    async with registry(answers) as schemas:
        unusable = (await schemas.schemas([1]))[1].unusable
        assert isinstance(unusable, UnusableSchema)
        assert unusable.rule == "references"
        assert says in unusable.message
        # For good: nothing that may come changes it.
        answers.asked.clear()
        await schemas.schemas([1])
    assert answers.asked == []


async def test_protobuf_is_compiled_with_what_it_imports() -> None:
    imports = 'syntax = "proto3"; import "parts/place.proto"; message M { shared.Place place = 1; }'
    place = 'syntax = "proto3"; package shared; import "side.proto"; message Place { Side side = 1; }'
    side = 'syntax = "proto3"; package shared; enum Side { NONE = 0; LEFT = 1; }'
    references = [{"name": "parts/place.proto", "subject": "place", "version": 1}]
    answers = Stored(
        ids1=httpx.Response(
            200, json={"schema": imports, "schemaType": "PROTOBUF", "references": references}
        ),
        place1=stored(place, "side.proto", kind="PROTOBUF"),
        **{"side.proto1": stored(side, kind="PROTOBUF")},
    )
    compiled = await found(answers)
    files = descriptor_pb2.FileDescriptorSet.FromString(compiled.descriptors).file
    assert [message.name for message in files[-1].message_type] == ["M"]
    assert len(files) == 3


async def test_protobuf_is_compiled_once_or_it_is_told_why_it_cannot_be() -> None:
    definitions = {"/1": 'syntax = "proto3"; message M {}', "/2": "message {"}

    def answer(request: httpx.Request) -> httpx.Response:
        definition = definitions[request.url.path[-2:]]
        return httpx.Response(200, json={"schema": definition, "schemaType": "PROTOBUF"})

    async with registry(answer) as schemas:
        found = await schemas.schemas([1, 2])
        files = descriptor_pb2.FileDescriptorSet.FromString(found[1].descriptors).file
        assert [message.name for message in files[-1].message_type] == ["M"]
        unusable = found[2].unusable
        assert unusable is not None
        assert unusable.rule == "protobuf"
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
