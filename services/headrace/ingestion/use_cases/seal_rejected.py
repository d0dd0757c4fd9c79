"""Which rejected events may hold personal data, and are kept encrypted for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.domain.key_ring import KeyRing
from headrace.ingestion.domain.rejection import Rejection
from headrace.ingestion.domain.sealing import seal
from headrace.ingestion.use_cases.ports import Catalogue


class SealRejected:
    """The use case."""

    def __init__(self, catalogue: Catalogue, keys: KeyRing) -> None:
        self._catalogue = catalogue
        self._keys = keys

    async def __call__(
        self, rejections: Sequence[Rejection], known: Mapping[str, Dataset]
    ) -> Sequence[Rejection]:
        """The rejections as they are kept and published.

        Those of a dataset with personal fields are sealed; and where there is any such dataset, those of
        none, too: their producer may have meant it. `known`: datasets that were read already.
        Raises FailedPrecondition PRIVACY_KEY_MISSING.
        """
        others = {rejection.dataset for rejection in rejections} - known.keys()
        datasets = {**known, **(await self._catalogue.datasets(others) if others else {})}
        stray = any(rejection.dataset not in datasets for rejection in rejections)
        seals_strays = stray and await self._catalogue.holds_personal_data()

        def is_sealed(rejection: Rejection) -> bool:
            dataset = datasets.get(rejection.dataset)
            return seals_strays if dataset is None else bool(dataset.schema.personal)

        if not any(map(is_sealed, rejections)):
            return rejections
        return await asyncio.to_thread(
            lambda: [seal(one, self._keys) if is_sealed(one) else one for one in rejections]
        )
