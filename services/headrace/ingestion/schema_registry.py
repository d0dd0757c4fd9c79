"""A Confluent-compatible schema registry, asked over HTTP for what its ids stand for."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from headrace.errors import Unavailable, one_line
from headrace.ingestion.domain.avro import UnusableSchema
from headrace.ingestion.proto_compiler import compile_proto
from headrace.ingestion.schema_references import (
    MissingReference,
    Reference,
    Schema,
    definitions_of,
)
from headrace.ingestion.settings import Settings
from headrace.ingestion.use_cases.ports import RegisteredSchema

# Ids are Java's positive ints; a registry may take another number for its own mistake.
_LARGEST_ID: Final = 2**31 - 1
_AT_ONCE: Final = 8
_NO_SCHEMA: Final = frozenset({40403})
# No such subject, or version of it.
_NO_VERSION: Final = frozenset({40401, 40402, 40403})


class _Error(BaseModel):
    error_code: int


class HttpSchemaRegistry:
    """Asks once for each id that exists, and what it refers to: that never changes. Keeps the latest ones."""

    def __init__(self, client: httpx.AsyncClient, *, kept: int) -> None:
        """`client` knows the registry's address, credentials and timeouts."""
        self._client = client
        self._kept: OrderedDict[int, RegisteredSchema] = OrderedDict()
        self._most = kept
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def schemas(self, ids: Collection[int]) -> Mapping[int, RegisteredSchema]:
        """Those of the ids that the registry knows. One that it does not is asked for again each time, and
        one that refers to what it does not.

        Raises Unavailable SCHEMA_REGISTRY_UNAVAILABLE where it does not answer, or not as a registry does.
        """
        found = {schema_id: self._kept[schema_id] for schema_id in ids if schema_id in self._kept}
        wanted = [schema_id for schema_id in ids if schema_id not in found and schema_id <= _LARGEST_ID]
        answers = await asyncio.gather(*map(self._ask, wanted))
        found |= {
            schema_id: schema for schema_id, schema in zip(wanted, answers, strict=True) if schema is not None
        }
        for schema_id, schema in found.items():
            if not isinstance(schema.unusable, MissingReference):
                self._kept[schema_id] = schema
                self._kept.move_to_end(schema_id)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return found

    async def _ask(self, schema_id: int) -> RegisteredSchema | None:
        schema = await self._get(f"schemas/ids/{schema_id}", _NO_SCHEMA)
        if schema is None:
            return None
        try:
            others = await definitions_of(schema.references, self._referenced)
            if schema.format != "PROTOBUF":
                return RegisteredSchema(schema.format, schema.definition, tuple(others.values()))
            descriptors = await asyncio.to_thread(compile_proto, schema.definition, others)
        except UnusableSchema as error:
            return RegisteredSchema(schema.format, schema.definition, unusable=error)
        return RegisteredSchema(schema.format, schema.definition, descriptors=descriptors)

    async def _referenced(self, reference: Reference) -> Schema | None:
        subject = quote(reference.subject, safe="")
        return await self._get(f"subjects/{subject}/versions/{reference.version}", _NO_VERSION)

    async def _get(self, path: str, absent: Collection[int]) -> Schema | None:
        """What the registry answers; None where it says by one of these codes that it has no such thing."""
        try:
            async with self._slots:
                response = await self._client.get(path)
        except httpx.HTTPError as error:
            raise _unavailable(f"does not answer ({one_line(error)})") from error
        try:
            if response.status_code == HTTPStatus.OK:
                return Schema.model_validate_json(response.content)
            # Only a registry says it like that: a proxy's 404, or a wrong path's, decides nothing.
            if response.status_code == HTTPStatus.NOT_FOUND:
                error_code = _Error.model_validate_json(response.content).error_code
                if error_code in absent:
                    return None
        except ValidationError as error:
            raise _unavailable(
                f"answers {response.status_code} to {path} without what it should say"
            ) from error
        raise _unavailable(f"answers {response.status_code} to {path}")


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
