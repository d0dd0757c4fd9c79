"""The patients of a clinic whose scanner is replaced: from then on every length is measured too long.

The patients are real, scikit-learn's, in two groups. Those that are known come with their diagnosis, and
models learn from them; the others ask, and no model has seen them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Final

from examples.shared.samples import SAMPLES_TOPIC, Sample, load, publish, sample_record

# A window's size in the pipeline, so that each window has every patient once.
ASKING: Final = 200
STRETCH: Final = 1.25
BETWEEN_EXAMINATIONS_SECONDS: Final = 2.0
_SEED: Final = 1


def known_patients() -> list[Sample]:
    """369 patients, as the old scanner measured them."""
    return load(_SEED)[ASKING:]


def asking_patients() -> list[Sample]:
    """The 200 others."""
    return load(_SEED)[:ASKING]


def stretched(feature: str) -> float:
    """By what the new scanner's value of a feature exceeds the old one's, as a factor."""
    if "radius" in feature or "perimeter" in feature:
        return STRETCH
    return STRETCH**2 if "area" in feature else 1.0


def on_the_new_scanner(samples: Sequence[Sample]) -> list[Sample]:
    """The same patients, measured by the new one."""
    return [
        replace(sample, features={name: value * stretched(name) for name, value in sample.features.items()})
        for sample in samples
    ]


@asynccontextmanager
async def examinations(bootstrap: str, dataset: str, samples: Sequence[Sample]) -> AsyncIterator[None]:
    """Patients come for examination, again and again, while the block runs; their samples have labels."""
    coming = asyncio.create_task(_examine_all(bootstrap, dataset, samples))
    try:
        yield
    finally:
        coming.cancel()
        with suppress(asyncio.CancelledError):
            await coming


async def _examine_all(bootstrap: str, dataset: str, samples: Sequence[Sample]) -> None:
    while True:
        await publish(bootstrap, SAMPLES_TOPIC, [sample_record(dataset, sample) for sample in samples])
        await asyncio.sleep(BETWEEN_EXAMINATIONS_SECONDS)
