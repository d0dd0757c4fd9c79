"""Versions by number or tag: found, tagged, pinned, compared."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from headrace.errors import AlreadyExists, FailedPrecondition, NotFound
from headrace.ingestion.domain.dataset import DatasetVersion
from headrace.ingestion.domain.profile import FieldProfile, Profile
from headrace.ingestion.use_cases.cut_versions import require_dataset
from headrace.ingestion.use_cases.ports import Catalogue

VersionName = int | str
"""A version's number, or one of its tags."""


@dataclass(frozen=True, slots=True)
class FieldPair:
    """A field in two versions; None where it is not in one."""

    name: str
    base: FieldProfile | None
    other: FieldProfile | None


@dataclass(frozen=True, slots=True)
class VersionPair:
    """Two versions side by side: the base's fields, then those that only the other one has."""

    base: DatasetVersion
    other: DatasetVersion
    fields: tuple[FieldPair, ...]


class Versions:
    """The use cases. All raise NotFound DATASET_NOT_FOUND, DATASET_VERSION_NOT_FOUND, VERSION_EXPIRED or
    TAG_NOT_FOUND."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    async def find(self, dataset: str, name: VersionName) -> DatasetVersion:
        """The version of that number or tag."""
        if isinstance(name, int):
            version = await self._catalogue.version(dataset, name)
        else:
            version = await self._catalogue.tagged_version(dataset, name)
        if version is not None:
            if version.expire_time is not None:
                raise _expired(version, version.expire_time)
            return version
        await require_dataset(self._catalogue, dataset)
        if isinstance(name, int):
            raise NotFound("DATASET_VERSION_NOT_FOUND", f"{dataset} has no version {name}")
        raise _no_tag(dataset, name)

    async def profile(self, version: DatasetVersion) -> Profile:
        """What its rows look like. Raises FailedPrecondition NO_PROFILE."""
        profile = await self._catalogue.profile(version.dataset, version.version)
        if profile is None:
            raise FailedPrecondition(
                "NO_PROFILE",
                f"version {version.version} of {version.dataset} was cut before profiles were made; "
                "the next version that is cut has one, of its rows, too",
            )
        return profile

    async def pair(self, dataset: str, base: VersionName, other: VersionName) -> VersionPair:
        """Two versions side by side. Raises FailedPrecondition NO_PROFILE."""
        first, second = await self.find(dataset, base), await self.find(dataset, other)
        left, right = await self.profile(first), await self.profile(second)
        names = dict.fromkeys(field.name for field in (*left.fields, *right.fields))
        return VersionPair(
            first, second, tuple(FieldPair(name, left.field(name), right.field(name)) for name in names)
        )

    async def tag(self, dataset: str, name: VersionName, tag: str, *, force: bool) -> DatasetVersion:
        """Name a version. Raises AlreadyExists TAG_TAKEN where another one has the tag, unless forced."""
        version = await self.find(dataset, name)
        async with self._catalogue.transaction() as repository:
            holder = await repository.put_tag(dataset, tag, version.version, force=force)
        # First: it may have been forgotten meanwhile.
        tagged = await self.find(dataset, version.version)
        if holder != version.version:
            raise AlreadyExists(
                "TAG_TAKEN",
                f'"{tag}" is version {holder} of {dataset}; use force (--force) to move it',
            )
        return tagged

    async def untag(self, dataset: str, tag: str) -> None:
        """Take a tag away."""
        await require_dataset(self._catalogue, dataset)
        async with self._catalogue.transaction() as repository:
            if not await repository.delete_tag(dataset, tag):
                raise _no_tag(dataset, tag)

    async def pin(self, dataset: str, name: VersionName, *, pinned: bool) -> DatasetVersion:
        """Keep the version whatever retention says, or no longer."""
        version = await self.find(dataset, name)
        async with self._catalogue.transaction() as repository:
            await repository.set_pinned(dataset, version.version, pinned=pinned)
        return await self.find(dataset, version.version)


def _expired(version: DatasetVersion, time: datetime) -> NotFound:
    return NotFound(
        "VERSION_EXPIRED",
        f"version {version.version} of {version.dataset} was forgotten on {time:%Y-%m-%d}: the dataset keeps "
        f"versions for a time only; `headrace dataset versions {version.dataset}` shows those that it has, "
        "and one that is pinned (headrace dataset pin) or tagged stays",
    )


def _no_tag(dataset: str, tag: str) -> NotFound:
    return NotFound(
        "TAG_NOT_FOUND", f'no version of {dataset} is tagged "{tag}"; `headrace dataset versions` shows tags'
    )
