"""The schemas that a batch's payloads were written by."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.ingestion.use_cases.envelopes import Opened
from headrace.ingestion.use_cases.ports import RegisteredSchema, SchemaRegistry


async def schemas_of(
    opened: Opened, registry: SchemaRegistry | None
) -> Mapping[int, RegisteredSchema] | None:
    """Those that the registry knows; None where there is no registry.

    Raises Unavailable SCHEMA_REGISTRY_UNAVAILABLE: nothing may be judged then.
    """
    return None if registry is None else await registry.schemas(opened.schema_ids())
