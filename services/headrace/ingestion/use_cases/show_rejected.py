"""One rejected event, and its original bytes where somebody asks for them."""

from __future__ import annotations

import logging
from dataclasses import replace

from headrace.ingestion.domain.key_ring import KeyRing
from headrace.ingestion.domain.sealing import unsealed
from headrace.ingestion.use_cases.ports import Catalogue, RejectedRow
from headrace.ingestion.use_cases.resolve_rejected import not_found

logger = logging.getLogger(__name__)


class ShowRejected:
    """The use case."""

    def __init__(self, catalogue: Catalogue, keys: KeyRing) -> None:
        self._catalogue = catalogue
        self._keys = keys

    async def __call__(self, entry: int, *, reveal: bool) -> RejectedRow:
        """The entry as it is kept, or revealed.

        Raises NotFound REJECTED_NOT_FOUND, FailedPrecondition PRIVACY_KEY_MISSING, DataLoss SEAL_BROKEN.
        """
        row = await self._catalogue.rejected(entry)
        if row is None:
            raise not_found(entry)
        if not reveal or not row.rejection.sealed_by:
            return row
        revealed = replace(row, rejection=unsealed(row.rejection, self._keys))
        logger.info("revealed rejected event %d of %s", entry, row.rejection.dataset or "no dataset")
        return revealed
