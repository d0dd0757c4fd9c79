"""headrace.api.ingestion.v1.DatasetVersionService over gRPC: translation only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Final

import grpc.aio
import pyarrow as pa

from headrace.api.ingestion.v1 import ingestion_pb2
from headrace.api.ingestion.v1 import versions_pb2 as api
from headrace.api.ingestion.v1 import versions_pb2_grpc as api_grpc
from headrace.ingestion import translation
from headrace.ingestion.domain.content_hash import to_hex
from headrace.ingestion.domain.dataset import DatasetVersion
from headrace.ingestion.profile_translation import pair_to_message, profile_to_message
from headrace.ingestion.use_cases.ports import SampleTables
from headrace.ingestion.use_cases.read_version import ReadVersion
from headrace.ingestion.use_cases.replay_version import Replayed, ReplayVersion
from headrace.ingestion.use_cases.versions import VersionName, Versions
from headrace.rpc import options

# A message is a part of a batch, well below the limit.
_MESSAGE_BYTES: Final = options.MAX_MESSAGE_BYTES // 8

_Context = grpc.aio.ServicerContext[object, object]


class DatasetVersionServicer(api_grpc.DatasetVersionServiceServicer):
    """What can be asked of versions, and done with them."""

    def __init__(
        self, versions: Versions, tables: SampleTables, *, read: ReadVersion, replay: ReplayVersion
    ) -> None:
        self._versions = versions
        self._tables = tables
        self._read = read
        self._replay = replay

    async def GetProfile(  # noqa: D102
        self, request: api.GetProfileRequest, context: _Context
    ) -> api.Profile:
        version = await self._versions.find(request.dataset, _name(request.version))
        return profile_to_message(await self._versions.profile(version), request.quantile_count)

    async def DiffVersions(  # noqa: D102
        self, request: api.DiffVersionsRequest, context: _Context
    ) -> api.VersionDiff:
        pair = await self._versions.pair(request.dataset, _name(request.base), _name(request.other))
        return api.VersionDiff(
            base=self._version(pair.base),
            other=self._version(pair.other),
            fields=map(pair_to_message, pair.fields),
        )

    async def TagVersion(  # noqa: D102
        self, request: api.TagVersionRequest, context: _Context
    ) -> ingestion_pb2.DatasetVersion:
        name = _name(request.version)
        return self._version(
            await self._versions.tag(request.dataset, name, request.tag, force=request.force)
        )

    async def UntagVersion(  # noqa: D102
        self, request: api.UntagVersionRequest, context: _Context
    ) -> api.UntagVersionResponse:
        await self._versions.untag(request.dataset, request.tag)
        return api.UntagVersionResponse()

    async def PinVersion(  # noqa: D102
        self, request: api.PinVersionRequest, context: _Context
    ) -> ingestion_pb2.DatasetVersion:
        name = _name(request.version)
        return self._version(await self._versions.pin(request.dataset, name, pinned=True))

    async def UnpinVersion(  # noqa: D102
        self, request: api.UnpinVersionRequest, context: _Context
    ) -> ingestion_pb2.DatasetVersion:
        name = _name(request.version)
        return self._version(await self._versions.pin(request.dataset, name, pinned=False))

    async def ReadVersion(  # noqa: D102
        self, request: api.ReadVersionRequest, context: _Context
    ) -> AsyncIterator[api.ReadVersionResponse]:
        version = await self._versions.find(request.dataset, _name(request.version))
        read = self._read.revealed if request.reveal else self._read
        async with aclosing(read(version)) as batches:
            async for batch in batches:
                for part in _parts(batch):
                    yield api.ReadVersionResponse(
                        row_count=version.row_count, arrow_stream=_arrow_stream(part)
                    )

    async def ReplayVersion(  # noqa: D102
        self, request: api.ReplayVersionRequest, context: _Context
    ) -> AsyncIterator[api.ReplayVersionResponse]:
        version = await self._versions.find(request.dataset, _name(request.version))
        replayed = Replayed(0, 0)
        async with aclosing(self._replay(version)) as progress:
            async for replayed in progress:
                yield api.ReplayVersionResponse(row_count=version.row_count, replayed_count=replayed.rows)
        yield api.ReplayVersionResponse(
            row_count=version.row_count,
            replayed_count=replayed.rows,
            result=api.ReplayResult(
                content_hash=to_hex(replayed.content_hash),
                same=replayed.matches(version),
            ),
        )

    def _version(self, version: DatasetVersion) -> ingestion_pb2.DatasetVersion:
        return translation.version_to_message(version, self._tables.uri(version.dataset))


def _name(message: api.VersionName) -> VersionName:
    return message.tag if message.WhichOneof("name") == "tag" else message.number


def _parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in parts of which each fits a message; a single row always does, as its event did."""
    if batch.nbytes <= _MESSAGE_BYTES or batch.num_rows <= 1:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _parts(batch.slice(0, half))
    yield from _parts(batch.slice(half))


def _arrow_stream(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    stream: bytes = sink.getvalue().to_pybytes()
    return stream
