"""The payloads that producers put into the object store (claim checks)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable
from datetime import datetime
from typing import Final, TypeVar

from headrace.errors import InvalidArgument, Unavailable
from headrace.messaging.claims import CLAIMS
from headrace.objects.store import ObjectStore

# What is asked of the store at once: as much as is lost when it stops answering.
_PART_BYTES: Final = 8 << 20
# S3 takes 1024 bytes with the store's own prefix.
_LONGEST: Final = 512
# Names that no store, and no escaping, makes anything else of: nothing leads out of the folder. Longer ones
# some stores do not answer for.
_PATH: Final = re.compile(rf"{CLAIMS}(/[A-Za-z0-9_-][A-Za-z0-9_.-]{{0,254}})+")

T = TypeVar("T")


class StoredClaims:
    """Reads and removes payloads below the store's folder `claims`, and nothing else."""

    def __init__(self, store: ObjectStore, *, seconds: float) -> None:
        """`seconds`: how long an answer of the store, at most 8 MiB of a payload, is waited for."""
        self._store = store
        self._seconds = seconds
        self.folder = store.uri(CLAIMS) + "/"

    def path(self, reference: str) -> str | None:
        """Where the payload of that address lies; None where no payload may."""
        try:
            path = self._store.path(reference)
        except InvalidArgument:
            return None
        return path if len(path) <= _LONGEST and _PATH.fullmatch(path) else None

    async def size(self, path: str) -> int:
        """Bytes of a payload. Raises NotFound."""
        return await self._answer(self._store.size(path))

    async def read(self, path: str, size: int) -> AsyncIterator[bytes]:
        """A payload of so many bytes, in parts. Raises NotFound."""
        for start in range(0, size, _PART_BYTES):
            yield await self._answer(self._store.get_part(path, start, min(size, start + _PART_BYTES)))

    async def older(self, before: datetime) -> AsyncIterator[str]:
        """Paths of the payloads that were last written before a moment."""
        async for path in self._store.older(CLAIMS, before):
            yield path

    async def remove(self, path: str) -> None:
        """Remove a payload; one that is not there is fine."""
        await self._store.delete(path)

    async def _answer(self, asked: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._seconds):
                return await asked
        except TimeoutError as error:
            raise Unavailable(
                "STORE_UNAVAILABLE",
                f"the object store {self.folder} gave no answer for {self._seconds:g} s",
            ) from error
