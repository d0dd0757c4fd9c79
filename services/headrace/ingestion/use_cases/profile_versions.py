"""What a version's rows look like, made when it is cut, and what the dataset's quality rules say to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from headrace.ingestion.domain.dataset import Dataset, DatasetVersion
from headrace.ingestion.domain.profile import Profile, extended, is_extensible
from headrace.ingestion.domain.quality import Finding, judge, references
from headrace.ingestion.use_cases.ports import Catalogue, VersionRows

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Profiled:
    """A version's profile, and what the rules found in it."""

    profile: Profile
    findings: tuple[Finding, ...]


class ProfileVersions:
    """The use case. It stores nothing: after a crash the next cut begins anew."""

    def __init__(self, catalogue: Catalogue, rows: VersionRows) -> None:
        self._catalogue = catalogue
        self._rows = rows

    async def __call__(self, dataset: Dataset, last: DatasetVersion | None, table_version: int) -> Profiled:
        """Profile the rows of a version to be, which comes after `last` and ends with `table_version`.

        Only rows beyond `last` are read, unless its profile is missing, or lacks what is a feature since.
        """
        base = await self._catalogue.profile(dataset.name, last.version) if last else None
        profile = await asyncio.to_thread(self._profile, dataset, last, base, table_version)
        compared = await self._compared(dataset, base)
        return Profiled(profile, judge(dataset.quality, dataset.schema, profile, compared))

    def _profile(
        self, dataset: Dataset, last: DatasetVersion | None, base: Profile | None, table_version: int
    ) -> Profile:
        if base is not None and not is_extensible(base, dataset.schema):
            logger.info("profiling all rows of %s: an attribute of before is a feature now", dataset.name)
        elif last is not None and base is not None:
            try:
                added = self._rows.added(dataset, last.table_version, table_version)
                return extended(base, dataset.schema, added)
            except FileNotFoundError as error:
                # Compaction wrote its rows elsewhere before they were cut.
                logger.info("profiling all rows of %s, not just the new ones: %s", dataset.name, error)
        names = [field.name for field in dataset.schema.fields]
        return extended(None, dataset.schema, self._rows.at(dataset.name, table_version, names))

    async def _compared(self, dataset: Dataset, base: Profile | None) -> Mapping[str, Profile]:
        compared = {"": base}
        for tag in references(dataset.quality) - {""}:
            tagged = await self._catalogue.tagged_version(dataset.name, tag)
            compared[tag] = await self._catalogue.profile(dataset.name, tagged.version) if tagged else None
        return {tag: profile for tag, profile in compared.items() if profile is not None}
