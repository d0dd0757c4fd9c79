"""A Confluent-compatible schema registry, asked over HTTP for what its ids stand for."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import Final

import httpx
from pydantic import BaseModel, Field, ValidationError

from headrace.errors import Unavailable, one_line
from headrace.ingestion.domain.avro import UnusableSchema
from headrace.ingestion.proto_compiler import compile_proto
from headrace.ingestion.settings import Settings
from headrace.ingestion.use_cases.ports import RegisteredSchema

# Ids are Java's positive ints; a registry may take another number for its own mistake.
_LARGEST_ID: Final = 2**31 - 1
_AT_ONCE: Final = 8
_NOT_FOUND: Final = 40403


class _Reference(BaseModel):
    name: str


class _Schema(BaseModel):
    """`GET /schemas/ids/ID`. Avro, the first format that there was, goes without saying."""

    definition: str = Field(alias="schema")
    format: str = Field(default="AVRO", alias="schemaType")
    references: tuple[_Reference, ...] = ()


class _Error(BaseModel):
    error_code: int


class HttpSchemaRegistry:
    """Asks once for each id that exists: what an id stands for never changes. Keeps the latest ones."""

    def __init__(self, client: httpx.AsyncClient, *, kept: int) -> None:
        """`client` knows the registry's address, credentials and timeouts."""
        self._client = client
        self._kept: OrderedDict[int, RegisteredSchema] = OrderedDict()
        self._most = kept
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def schemas(self, ids: Collection[int]) -> Mapping[int, RegisteredSchema]:
        """Those of the ids that the registry knows. One that it does not is asked for again each time.

        Raises Unavailable SCHEMA_REGISTRY_UNAVAILABLE where it does not answer, or not as a registry does.
        """
        found = {schema_id: self._kept[schema_id] for schema_id in ids if schema_id in self._kept}
        wanted = [schema_id for schema_id in ids if schema_id not in found and schema_id <= _LARGEST_ID]
        answers = await asyncio.gather(*map(self._ask, wanted))
        found |= {
            schema_id: schema for schema_id, schema in zip(wanted, answers, strict=True) if schema is not None
        }
        for schema_id, schema in found.items():
            self._kept[schema_id] = schema
            self._kept.move_to_end(schema_id)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return found

    async def _ask(self, schema_id: int) -> RegisteredSchema | None:
        path = f"schemas/ids/{schema_id}"
        try:
            async with self._slots:
                response = await self._client.get(path)
        except httpx.HTTPError as error:
            raise _unavailable(f"does not answer ({one_line(error)})") from error
        try:
            if response.status_code == HTTPStatus.OK:
                schema = _Schema.model_validate_json(response.content)
                return await _registered(schema)
            # Only a registry says it like that: a proxy's 404, or a wrong path's, decides nothing.
            if response.status_code == HTTPStatus.NOT_FOUND:
                error_code = _Error.model_validate_json(response.content).error_code
                if error_code == _NOT_FOUND:
                    return None
        except ValidationError as error:
            raise _unavailable(
                f"answers {response.status_code} to {path} without what it should say"
            ) from error
        raise _unavailable(f"answers {response.status_code} to {path}")


async def _registered(schema: _Schema) -> RegisteredSchema:
    references = tuple(other.name for other in schema.references)
    registered = RegisteredSchema(schema.format, schema.definition, references)
    if schema.format != "PROTOBUF" or references:
        return registered
    try:
        descriptors: bytes | UnusableSchema = await asyncio.to_thread(compile_proto, schema.definition)
    except UnusableSchema as error:
        descriptors = error
    return replace(registered, descriptors=descriptors)


def _unavailable(what: str) -> Unavailable:
    return Unavailable(
        "SCHEMA_REGISTRY_UNAVAILABLE",
        f"the schema registry {what}; is HEADRACE_INGESTION_SCHEMA_REGISTRY_URL right, and its user allowed?",
    )


@asynccontextmanager
async def schema_registry(settings: Settings) -> AsyncIterator[HttpSchemaRegistry | None]:
    """The registry of the settings; None where they name none."""
    if settings.schema_registry_url is None:
        yield None
        return
    auth = httpx.BasicAuth(
        settings.schema_registry_user, settings.schema_registry_password.get_secret_value()
    )
    async with httpx.AsyncClient(
        base_url=str(settings.schema_registry_url),
        auth=auth if settings.schema_registry_user else None,
        timeout=settings.schema_registry_seconds,
    ) as client:
        yield HttpSchemaRegistry(client, kept=settings.schema_registry_kept)
