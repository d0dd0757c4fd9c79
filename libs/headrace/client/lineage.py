"""The models that were trained on a dataset, which of them are live, and how long the rows stay."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from headrace.api.inference.v1 import inference_pb2 as inference
from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.api.registry.v1 import registry_pb2 as registry
from headrace.rpc.convert import from_duration, from_timestamp
from headrace.rpc.paging import pages

if TYPE_CHECKING:
    from headrace.client.client import HeadraceClient

_PAGE: Final = 1000


class Kept(enum.Enum):
    """Why a dataset version's rows are there, or that they are not."""

    FORGOTTEN = "forgotten"
    PINNED = "pinned"
    TAGGED = "tagged"
    NEWEST = "newest"
    FOR_EVER = "for ever"
    FOR_A_TIME = "until"


@dataclass(frozen=True, slots=True)
class Stay:
    """How long a dataset version's rows stay; `time` is when they go, or went."""

    kept: Kept
    time: datetime | None = None


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model version, and the dataset version that it was trained on.

    `aliases` point at it, and `deployments` give it traffic: with either it is live.
    """

    model: str
    version: int
    aliases: tuple[str, ...]
    deployments: tuple[str, ...]
    dataset_version: int
    rows: Stay

    @property
    def live(self) -> bool:
        """Whether it answers, or is named to."""
        return bool(self.aliases or self.deployments)


def stay(version: ingestion.DatasetVersion, newest: int, age: timedelta | None) -> Stay:
    """How long a version's rows stay where versions are kept for `age`; None: for ever."""
    if version.HasField("expire_time"):
        return Stay(Kept.FORGOTTEN, from_timestamp(version.expire_time))
    if version.pinned:
        return Stay(Kept.PINNED)
    if version.tags:
        return Stay(Kept.TAGGED)
    if age is None:
        return Stay(Kept.FOR_EVER)
    if version.version == newest:
        return Stay(Kept.NEWEST)
    return Stay(Kept.FOR_A_TIME, from_timestamp(version.create_time) + age)


async def trained_models(client: HeadraceClient, dataset: str) -> Sequence[TrainedModel]:
    """The model versions that were trained on a dataset, by model, the newest of each first."""
    found = await client.ingestion.GetDataset(ingestion.GetDatasetRequest(name=dataset))
    age = from_duration(found.retention.versions) if found.retention.HasField("versions") else None
    stays = {
        version.version: stay(version, found.latest_version, age)
        async for version in _dataset_versions(client, dataset)
    }
    traffic = await _traffic(client)
    aliases: dict[tuple[str, int], list[str]] = {}
    async for model in _models(client):
        for alias, number in sorted(model.aliases.items()):
            aliases.setdefault((model.name, number), []).append(alias)
    trained = []
    async for version in trained_on(client, dataset, stays):
        name, number = version.model, version.version
        source = version.lineage.dataset_version.version
        trained.append(
            TrainedModel(
                name,
                number,
                tuple(aliases.get((name, number), ())),
                tuple(traffic.get((name, number), ())),
                source,
                stays[source],
            )
        )
    return trained


async def trained_on(
    client: HeadraceClient, dataset: str, versions: Collection[int]
) -> AsyncIterator[registry.ModelVersion]:
    """The model versions whose lineage names one of these versions of the dataset."""
    async for model in _models(client):
        request = registry.ListModelVersionsRequest(model=model.name, page_size=_PAGE)
        async for page in pages(client.registry.ListModelVersions, request):
            for found in page.versions:
                source = found.lineage.dataset_version
                if source.dataset == dataset and source.version in versions:
                    yield found


async def _models(client: HeadraceClient) -> AsyncIterator[registry.Model]:
    request = registry.ListModelsRequest(page_size=_PAGE)
    async for page in pages(client.registry.ListModels, request):
        for model in page.models:
            yield model


async def _dataset_versions(client: HeadraceClient, dataset: str) -> AsyncIterator[ingestion.DatasetVersion]:
    request = ingestion.ListVersionsRequest(dataset=dataset, page_size=_PAGE)
    async for page in pages(client.ingestion.ListVersions, request):
        for version in page.versions:
            yield version


async def _traffic(client: HeadraceClient) -> dict[tuple[str, int], list[str]]:
    """The deployments of each model version that has traffic."""
    request = inference.ListDeploymentsRequest(page_size=_PAGE)
    deployments: dict[tuple[str, int], list[str]] = {}
    async for page in pages(client.inference.ListDeployments, request):
        for deployment in page.deployments:
            for share in deployment.traffic:
                if share.weight:
                    deployments.setdefault((deployment.model, share.version), []).append(deployment.name)
    return deployments
