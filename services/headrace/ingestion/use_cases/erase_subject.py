"""A subject out of a dataset: rows of every version, rejected events with the payloads that they claim, and
what the inference service keeps of requests to the dataset's models.

An erasure is stored before anything is done, and each step can be done again: whoever goes on after a crash
looks at what there is. It ends when a look at every file finds nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from headrace.errors import NotFound, Unavailable
from headrace.ingestion.domain.dataset import Dataset, DatasetVersion
from headrace.ingestion.domain.erasure import Erasure, ErasureState, requested, subject_of
from headrace.ingestion.domain.key_ring import KeyRing
from headrace.ingestion.domain.profile import Profile
from headrace.ingestion.domain.sealing import unsealed
from headrace.ingestion.use_cases.cut_versions import require_dataset
from headrace.ingestion.use_cases.ports import Catalogue, PredictionLog, TableErasure
from headrace.ingestion.use_cases.profile_versions import ProfileVersions
from headrace.ingestion.use_cases.recognise_subject import RecogniseSubject
from headrace.ingestion.use_cases.rejected_claims import RejectedClaims
from headrace.runtime.clock import Clock
from headrace.runtime.faults import fault_point
from headrace.runtime.ids import new_id

# Rejected events that are held at once.
_PAGE: Final = 50


class RequestErasure:
    """The use case."""

    def __init__(self, catalogue: Catalogue, keys: KeyRing, *, clock: Clock) -> None:
        self._catalogue = catalogue
        self._keys = keys
        self._clock = clock

    async def __call__(self, name: str, subject: str) -> Erasure:
        """Store the request; it is carried out soon after. Raises NotFound DATASET_NOT_FOUND."""
        dataset = await require_dataset(self._catalogue, name)
        erasure = requested(new_id(), dataset.name, subject, self._clock(), self._keys)
        async with self._catalogue.transaction() as repository:
            await repository.insert_erasure(erasure)
        fault_point("ingestion.after-erase-request")
        return erasure

    async def find(self, erasure: str) -> Erasure:
        """How far one has come. Raises NotFound ERASURE_NOT_FOUND."""
        found = await self._catalogue.erasure(erasure)
        if found is None:
            raise NotFound("ERASURE_NOT_FOUND", f"there is no erasure {erasure}")
        return found


class EraseSubject:
    """The use case. One at a time for a dataset, and not beside its table's maintenance."""

    def __init__(
        self,
        catalogue: Catalogue,
        tables: TableErasure,
        profiles: ProfileVersions,
        keys: KeyRing,
        recognise: RecogniseSubject,
        claims: RejectedClaims,
        predictions: PredictionLog,
        *,
        clock: Clock,
    ) -> None:
        self._catalogue = catalogue
        self._claims = claims
        self._predictions = predictions
        self._tables = tables
        self._profiles = profiles
        self._keys = keys
        self._recognise = recognise
        self._clock = clock

    async def __call__(self, erasure: Erasure) -> Erasure:
        """Carry it out, or go on with it.

        Raises Unavailable ERASURE_INCOMPLETE where a file still holds the subject, or
        PREDICTION_LOG_UNAVAILABLE, and whatever the database or the store raises: call again.
        """
        dataset = await require_dataset(self._catalogue, erasure.dataset)
        subject = subject_of(erasure, self._keys)
        erasure = await self._rewritten(await self._begun(erasure, dataset), dataset, subject)
        await asyncio.to_thread(self._tables.erase_history, dataset, subject, erasure.id)
        erasure = await self._erase_rejected(erasure, dataset, subject)
        erasure = await self._erase_predictions(erasure, subject)
        if left := await asyncio.to_thread(self._tables.holders, dataset, subject):
            raise Unavailable(
                "ERASURE_INCOMPLETE",
                f"{left} files of {dataset.name} hold the subject still: events of it arrive, or a writer"
                " died less than an hour ago; it is tried again",
            )
        return await self._finished(erasure, dataset)

    async def _begun(self, erasure: Erasure, dataset: Dataset) -> Erasure:
        if erasure.begin_version is not None:
            return erasure
        begin = await asyncio.to_thread(self._tables.newest, dataset)
        return await self._stored(replace(erasure, begin_version=begin))

    async def _rewritten(self, erasure: Erasure, dataset: Dataset, subject: str) -> Erasure:
        assert erasure.begin_version is not None
        rows = await asyncio.to_thread(
            self._tables.erase_rows, dataset, subject, erasure.id, erasure.begin_version
        )
        fault_point("ingestion.after-erase-commit")
        return await self._stored(
            replace(
                erasure,
                state=ErasureState.REWRITTEN,
                table_version=rows.table_version,
                row_count=rows.rows,
            )
        )

    async def _erase_rejected(self, erasure: Erasure, dataset: Dataset, subject: str) -> Erasure:
        after = 0
        while page := await self._catalogue.erasable_rejected(dataset.name, after, _PAGE):
            opened = [unsealed(rejection, self._keys) for rejection in page]
            ids = [
                one.id
                async for filled in self._claims.filled(opened)
                for one in await self._recognise(filled, dataset.schema, subject)
            ]
            erasure = replace(erasure, rejected_count=erasure.rejected_count + len(ids))
            if ids:
                async with self._catalogue.transaction() as repository:
                    await repository.erase_rejected(ids, self._clock())
                    await repository.mark_claims_erased(ids)
                    await repository.update_erasure(erasure)
                fault_point("ingestion.after-erase-rejected")
            after = page[-1].id
        await self._claims.remove_erased()
        return erasure

    async def _erase_predictions(self, erasure: Erasure, subject: str) -> Erasure:
        count = await self._predictions.erase(erasure.id, erasure.dataset, subject)
        fault_point("ingestion.after-erase-predictions")
        return await self._stored(replace(erasure, prediction_count=count))

    async def _finished(self, erasure: Erasure, dataset: Dataset) -> Erasure:
        """Write down which versions lack rows now, and what is left of them looks like."""
        assert erasure.table_version is not None
        lacking = await self._lacking(dataset, erasure.table_version)
        left: list[tuple[DatasetVersion, Profile]] = []
        for version in lacking:
            profile, counts = await asyncio.to_thread(self._profiles.again, dataset, version)
            left.append((replace(version, split_counts=counts), profile))
        erasure = erasure.done(tuple(version.version for version in lacking), self._clock())
        async with self._catalogue.transaction() as repository:
            for version, profile in left:
                await repository.update_erased(version)
                await repository.replace_profile(dataset.name, version.version, profile)
            await repository.update_erasure(erasure)
            await repository.publish_erased(erasure)
        fault_point("ingestion.after-erase-finish")
        return erasure

    async def _lacking(self, dataset: Dataset, table_version: int) -> Sequence[DatasetVersion]:
        """Versions from before that lack more rows than they are known to, with as many as they do."""
        before: int | None = None
        older: list[DatasetVersion] = []
        while versions := await self._catalogue.list_versions(dataset.name, before, _PAGE):
            older += [
                version
                for version in versions
                if version.table_version < table_version and version.expire_time is None
            ]
            before = versions[-1].version
        # Together: the log is read once, however many there are.
        counts = await asyncio.to_thread(
            self._tables.row_counts, dataset, {version.table_version for version in older}
        )
        erased = {version.version: version.row_count - counts[version.table_version] for version in older}
        return [
            replace(version, erased_rows=erased[version.version])
            for version in reversed(older)
            if erased[version.version] > version.erased_rows
        ]

    async def _stored(self, erasure: Erasure) -> Erasure:
        async with self._catalogue.transaction() as repository:
            await repository.update_erasure(erasure)
        fault_point("ingestion.after-erase-state")
        return erasure
