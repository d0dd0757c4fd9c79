"""headrace.api.ingestion.v1 over gRPC: translation only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import accumulate
from typing import Final

import grpc.aio

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.api.ingestion.v1 import ingestion_pb2_grpc as api_grpc
from headrace.errors import InvalidArgument
from headrace.ingestion import translation
from headrace.ingestion.domain.dataset import Dataset, DatasetVersion
from headrace.ingestion.domain.retention import Retention
from headrace.ingestion.quality_translation import rule_from_message, rule_to_message
from headrace.ingestion.source_translation import source_from_message, source_to_message
from headrace.ingestion.split_translation import split_from_message, split_to_message
from headrace.ingestion.use_cases.append_samples import AppendSamples, NewSample
from headrace.ingestion.use_cases.apply_dataset import ApplyDataset
from headrace.ingestion.use_cases.cut_versions import CutVersions, require_dataset
from headrace.ingestion.use_cases.ports import Catalogue, RejectedFilter, RejectedRow, SampleTables
from headrace.ingestion.use_cases.resolve_rejected import (
    Cursor,
    DiscardRejected,
    ReplayRejected,
)
from headrace.ingestion.use_cases.show_rejected import ShowRejected
from headrace.ingestion.use_cases.validate_samples import ValidateSamples
from headrace.ingestion.use_cases.versions import Versions
from headrace.rpc import options, paging
from headrace.rpc.convert import to_timestamp

# Rejected events are listed whole: a page ends early rather than above the limit of a message.
_PAGE_BYTES: Final = options.MAX_MESSAGE_BYTES // 4

_Context = grpc.aio.ServicerContext[object, object]


class IngestionServicer(api_grpc.IngestionServiceServicer):
    """Datasets, their versions and the events that were rejected."""

    def __init__(
        self,
        catalogue: Catalogue,
        tables: SampleTables,
        *,
        apply_dataset: ApplyDataset,
        append_samples: AppendSamples,
        validate_samples: ValidateSamples,
        versions: CutVersions,
        replay_rejected: ReplayRejected,
        discard_rejected: DiscardRejected,
        show_rejected: ShowRejected,
    ) -> None:
        self._catalogue = catalogue
        self._tables = tables
        self._apply_dataset = apply_dataset
        self._append_samples = append_samples
        self._validate_samples = validate_samples
        self._versions = versions
        self._replay_rejected = replay_rejected
        self._discard_rejected = discard_rejected
        self._show_rejected = show_rejected

    async def ApplyDataset(  # noqa: D102
        self, request: api.ApplyDatasetRequest, context: _Context
    ) -> api.Dataset:
        schema = translation.schema_from_message(request.schema)
        cut = translation.cut_from_message(request.cut)
        rejects = translation.rejects_from_message(request.rejects)
        quality = [rule_from_message(rule) for rule in request.quality]
        split = split_from_message(request.split) if request.HasField("split") else None
        retention = translation.retention_from_message(request.retention)
        source = source_from_message(request.source) if request.HasField("source") else None
        return await self._dataset(
            await self._apply_dataset(
                request.name,
                schema,
                cut,
                rejects,
                quality,
                split,
                retention,
                source,
                schema_version=request.schema_version,
            )
        )

    async def GetDataset(  # noqa: D102
        self, request: api.GetDatasetRequest, context: _Context
    ) -> api.Dataset:
        return await self._dataset(await require_dataset(self._catalogue, request.name))

    async def ListDatasets(  # noqa: D102
        self, request: api.ListDatasetsRequest, context: _Context
    ) -> api.ListDatasetsResponse:
        size = paging.page_size(request.page_size)
        position = paging.decode_token(request.page_token, str)
        rows = await self._catalogue.list_datasets(str(position[0]) if position else "", size + 1)
        page, token = paging.cut(rows, size, lambda dataset: (dataset.name,))
        datasets = await asyncio.gather(*map(self._dataset, page))
        return api.ListDatasetsResponse(datasets=datasets, next_page_token=token)

    async def ListSchemas(  # noqa: D102
        self, request: api.ListSchemasRequest, context: _Context
    ) -> api.ListSchemasResponse:
        await require_dataset(self._catalogue, request.dataset)
        versions = await self._catalogue.schema_versions(request.dataset)
        return api.ListSchemasResponse(schemas=map(translation.schema_version_to_message, versions))

    async def AppendSamples(  # noqa: D102
        self, request_iterator: AsyncIterator[api.AppendSamplesRequest], context: _Context
    ) -> api.AppendSamplesResponse:
        samples = (
            NewSample(request.dataset, request.event_id, request.json, request.schema_version)
            async for request in request_iterator
        )
        return api.AppendSamplesResponse(appended_count=await self._append_samples(samples))

    async def ValidateSamples(  # noqa: D102
        self, request_iterator: AsyncIterator[api.ValidateSamplesRequest], context: _Context
    ) -> AsyncIterator[api.ValidateSamplesResponse]:
        groups = (translation.unjudged_from_message(request) async for request in request_iterator)
        async for judgement in self._validate_samples(groups):
            yield translation.judgement_to_message(judgement)

    async def CommitVersion(  # noqa: D102
        self, request: api.CommitVersionRequest, context: _Context
    ) -> api.DatasetVersion:
        return self._version(await self._versions.commit(request.dataset))

    async def GetVersion(  # noqa: D102
        self, request: api.GetVersionRequest, context: _Context
    ) -> api.DatasetVersion:
        if bool(request.version) == bool(request.tag):
            raise InvalidArgument("VERSION_NOT_NAMED", "name a version by its number, or by a tag")
        name = request.version or request.tag
        return self._version(await Versions(self._catalogue).find(request.dataset, name))

    async def ListVersions(  # noqa: D102
        self, request: api.ListVersionsRequest, context: _Context
    ) -> api.ListVersionsResponse:
        await require_dataset(self._catalogue, request.dataset)
        size = paging.page_size(request.page_size)
        before = _number(paging.decode_token(request.page_token, int))
        rows = await self._catalogue.list_versions(request.dataset, before, size + 1)
        page, token = paging.cut(rows, size, lambda version: (version.version,))
        return api.ListVersionsResponse(versions=map(self._version, page), next_page_token=token)

    async def ListRejected(  # noqa: D102
        self, request: api.ListRejectedRequest, context: _Context
    ) -> api.ListRejectedResponse:
        size = paging.page_size(request.page_size)
        before = _number(paging.decode_token(request.page_token, int))
        wanted = RejectedFilter(
            request.dataset or None, request.reason or None, translation.state_from_number(request.state)
        )
        rows = await self._catalogue.list_rejected(wanted, before, size + 1, _PAGE_BYTES)
        page, token = paging.cut(rows, min(size, _fitting(rows)), lambda row: (row.rejection.id,))
        return api.ListRejectedResponse(
            rejected=map(translation.rejected_row_to_message, page), next_page_token=token
        )

    async def GetRejected(  # noqa: D102
        self, request: api.GetRejectedRequest, context: _Context
    ) -> api.RejectedSample:
        row = await self._show_rejected(request.id, reveal=request.reveal)
        return translation.rejected_row_to_message(row)

    async def ReplayRejected(  # noqa: D102
        self, request: api.ReplayRejectedRequest, context: _Context
    ) -> api.ReplayRejectedResponse:
        wanted = _selection(request)
        correction = translation.correction_from_message(request.correction)
        if wanted is None:
            count = await self._replay_rejected.entries(request.ids, correction)
            return api.ReplayRejectedResponse(replayed_count=count)
        if request.HasField("correction"):
            raise InvalidArgument("INVALID_CORRECTION", "a correction is for one event by its id")
        page = await self._replay_rejected.matching(wanted, _cursor(request.page_token))
        return api.ReplayRejectedResponse(
            replayed_count=page.count, oversize_ids=page.oversize, next_page_token=_cursor_token(page.rest)
        )

    async def DiscardRejected(  # noqa: D102
        self, request: api.DiscardRejectedRequest, context: _Context
    ) -> api.DiscardRejectedResponse:
        wanted = _selection(request)
        if wanted is None:
            count = await self._discard_rejected.entries(request.ids, request.reason)
            return api.DiscardRejectedResponse(discarded_count=count)
        page = await self._discard_rejected.matching(wanted, request.reason, _cursor(request.page_token))
        return api.DiscardRejectedResponse(
            discarded_count=page.count, next_page_token=_cursor_token(page.rest)
        )

    async def _dataset(self, dataset: Dataset) -> api.Dataset:
        last, uncut = await self._versions.uncut(dataset)
        episode = await self._catalogue.open_episode(dataset.name)
        return api.Dataset(
            name=dataset.name,
            schema=translation.schema_to_message(dataset.schema),
            cut=translation.cut_to_message(dataset.cut),
            schema_version=dataset.schema_version,
            table_uri=self._tables.uri(dataset.name),
            row_count=(last.row_count if last else 0) + uncut.rows - uncut.erased,
            rejected_count=await self._catalogue.rejected_count(dataset.name),
            latest_version=last.version if last else 0,
            create_time=to_timestamp(dataset.create_time),
            update_time=to_timestamp(dataset.update_time),
            rejects=translation.rejects_to_message(dataset.rejects),
            cut_held=await self._versions.is_held(dataset),
            reject_alert_time=to_timestamp(episode.begin_time if episode else None),
            quality=map(rule_to_message, dataset.quality),
            split=split_to_message(dataset.split) if dataset.split else None,
            retention=translation.retention_to_message(dataset.retention)
            if dataset.retention != Retention()
            else None,
            source=source_to_message(dataset.source) if dataset.source else None,
        )

    def _version(self, version: DatasetVersion) -> api.DatasetVersion:
        return translation.version_to_message(version, self._tables.uri(version.dataset))


def _fitting(rows: Sequence[RejectedRow]) -> int:
    """How many rows a page has room for: at least one."""
    return max(1, sum(total <= _PAGE_BYTES for total in accumulate(row.size for row in rows)))


def _selection(request: api.ReplayRejectedRequest | api.DiscardRejectedRequest) -> RejectedFilter | None:
    """The filter; None where ids are given. Raises InvalidArgument INVALID_SELECTION."""
    by_filter = bool(request.filter.dataset or request.filter.reason)
    if by_filter == bool(request.ids):
        raise InvalidArgument(
            "INVALID_SELECTION", "name rejected events by their ids, or else by a dataset, a reason or both"
        )
    if not by_filter:
        return None
    return RejectedFilter(request.filter.dataset or None, request.filter.reason or None)


def _cursor(token: str) -> Cursor | None:
    position = paging.decode_token(token, int, int)
    return Cursor(int(position[0]), int(position[1])) if position else None


def _cursor_token(cursor: Cursor | None) -> str:
    return paging.encode_token((cursor.after, cursor.last)) if cursor else ""


def _number(position: paging.Position | None) -> int | None:
    return int(position[0]) if position else None
