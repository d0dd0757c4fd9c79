"""The schemas that a batch's payloads were written by, and that by which a version was cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from headrace.ingestion.domain.dataset import Dataset, DatasetVersion
from headrace.ingestion.domain.schema import Schema
from headrace.ingestion.use_cases.envelopes import Opened
from headrace.ingestion.use_cases.ports import Catalogue, RegisteredSchema, SchemaName, SchemaRegistry


async def schemas_of(
    opened: Opened, registry: SchemaRegistry | None
) -> Mapping[int, RegisteredSchema] | None:
    """Those that the registry knows; None where there is no registry.

    Raises Unavailable SCHEMA_REGISTRY_UNAVAILABLE: nothing may be judged then.
    """
    return None if registry is None else await registry.schemas(opened.schema_ids())


async def schema_versions_of(opened: Opened, catalogue: Catalogue) -> Mapping[SchemaName, Schema]:
    """The versions of datasets' own schemas that events name and that are known."""
    named = opened.schema_versions()
    return await catalogue.schemas(named) if named else {}


async def as_cut(catalogue: Catalogue, dataset: Dataset, version: DatasetVersion) -> Dataset:
    """The dataset with the schema by which a version was cut; as it is where that was not kept."""
    if version.schema_version == dataset.schema_version:
        return dataset
    name = (dataset.name, version.schema_version)
    schema = (await catalogue.schemas([name])).get(name)
    return replace(dataset, schema=schema, schema_version=version.schema_version) if schema else dataset
