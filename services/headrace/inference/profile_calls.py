"""Profiles of dataset versions, asked of the ingestion service (`use_cases.drift_ports.Profiles`)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from headrace.api.ingestion.v1 import ingestion_pb2, ingestion_pb2_grpc, versions_pb2, versions_pb2_grpc
from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.domain.drift import Column, Numbers, Reference, Value, Values
from headrace.inference.domain.quality import answers_of
from headrace.rpc.client import channel

# Between two of them a distribution is not known: a distance is underrated by a hundredth at most.
QUANTILES: Final = 99
# Those of a version never change but by erasures and retention, which a stale one outlives by little.
_KEPT: Final = 500


class GrpcProfiles:
    """Asks once for each version, and keeps the answers of the last ones."""

    def __init__(
        self,
        datasets: ingestion_pb2_grpc.IngestionServiceAsyncStub,
        versions: versions_pb2_grpc.DatasetVersionServiceAsyncStub,
    ) -> None:
        self._datasets = datasets
        self._versions = versions
        self._known: dict[tuple[str, int], Reference] = {}

    async def reference(self, version: ServedVersion) -> Reference:
        """The profile of the version's dataset version. Raises HeadraceError."""
        key = (version.model, version.version)
        if (known := self._known.get(key)) is not None:
            return known
        profile = await self._versions.GetProfile(
            versions_pb2.GetProfileRequest(
                dataset=version.dataset,
                version=versions_pb2.VersionName(number=version.dataset_version),
                quantile_count=QUANTILES,
            )
        )
        dataset = await self._datasets.GetDataset(ingestion_pb2.GetDatasetRequest(name=version.dataset))
        reference = reference_of(profile, dataset.schema.label.name, version.classes)
        self._known[key] = reference
        if len(self._known) > _KEPT:
            del self._known[next(iter(self._known))]
        return reference


@asynccontextmanager
async def profile_client(target: str) -> AsyncIterator[GrpcProfiles]:
    """Open a channel to the ingestion service; it connects when first used."""
    async with channel(target) as opened:
        yield GrpcProfiles(
            ingestion_pb2_grpc.IngestionServiceStub(opened),
            versions_pb2_grpc.DatasetVersionServiceStub(opened),
        )


def reference_of(profile: versions_pb2.Profile, label: str, classes: Sequence[str]) -> Reference:
    """A profile as requests are compared with it; the label's values as a model of these classes answers."""
    columns = {field.name: _column(field, profile.rank_error) for field in profile.fields}
    described = next((field for field in profile.fields if field.name == label), None)
    answers = None
    if described is not None and described.top_values and classes:
        answered = answers_of(classes)
        values = {json.loads(item.value): item.count for item in described.top_values}
        counts: dict[Value, int] = {answered[value]: values[value] for value in values.keys() & answered}
        answers = Values(described.count, counts)
    return Reference(columns, answers)


def _column(field: versions_pb2.FieldProfile, rank_error: float) -> Column:
    counts: dict[Value, int] = {}
    for item in field.top_values:
        value = json.loads(item.value)
        # As requests have them: numbers, and true as 1.
        counts[value if isinstance(value, str) else float(value)] = item.count
    numbers = field.numbers
    # A number's values are counted apart only where they are few and these are all of them.
    if field.HasField("numbers") and sum(counts.values()) < field.count:
        return Column(
            Numbers(
                field.count,
                numbers.min,
                numbers.max,
                tuple(quantile.rank for quantile in numbers.quantiles),
                tuple(quantile.value for quantile in numbers.quantiles),
                rank_error,
            ),
            field.null_count,
        )
    return Column(Values(field.count, counts) if counts else None, field.null_count)
