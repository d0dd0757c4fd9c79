"""Rejections into the database, and events about them to whoever listens."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Final

from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.domain.key_ring import KeyRing
from headrace.ingestion.domain.rejection import Rejection
from headrace.ingestion.use_cases.ports import Catalogue, Place, RejectedEvents
from headrace.ingestion.use_cases.seal_rejected import SealRejected
from headrace.messaging.producer import Encoded
from headrace.runtime.clock import Clock
from headrace.runtime.faults import fault_point

# Stored by one statement: while the database has some, the events about those before are written.
_AT_ONCE: Final = 1000


@dataclass(frozen=True, slots=True)
class Kept:
    """Rejections that are stored and were not before, and the events about them."""

    rejections: Sequence[Rejection]
    events: Sequence[Encoded]


class RejectEvents:
    """The use case, for one batch after the other."""

    def __init__(
        self, catalogue: Catalogue, rejected_events: RejectedEvents, *, keys: KeyRing, clock: Clock
    ) -> None:
        self._catalogue = catalogue
        self._rejected_events = rejected_events
        self._seal = SealRejected(catalogue, keys)
        self._clock = clock
        # Of the batch at hand, which may fail again and again: what was published needs not be again.
        self._published: set[Place] = set()

    def forget(self) -> None:
        """The batch at hand is done."""
        self._published.clear()

    async def keep(
        self,
        rejections: Sequence[Rejection],
        datasets: Mapping[str, Dataset],
        versions: Mapping[str, int],
        claims: Mapping[Place, str],
    ) -> Kept | None:
        """Store those that are not there; None where a schema changed since, and nothing was stored.

        `versions`: of the schemas that they were judged by, by their datasets' names; 0 where there was none.
        `claims`: where the payloads lie that events claimed.
        """
        if not rejections:
            return Kept((), ())
        rejections = await self._seal(rejections, datasets)
        now = self._clock()
        new: list[Rejection] = []
        encoding: list[asyncio.Task[Sequence[Encoded]]] = []
        async with self._catalogue.transaction() as repository:
            if await repository.hold_schema_versions(versions.keys()) != versions:
                return None
            for start in range(0, len(rejections), _AT_ONCE):
                some = await repository.insert_rejected(rejections[start : start + _AT_ONCE], now)
                new += some
                encoding.append(
                    asyncio.create_task(asyncio.to_thread(self._rejected_events.encode, some, now))
                )
            if claims:
                places = {_place(rejection): rejection.id for rejection in new}
                await repository.keep_claims(
                    {places[place]: path for place, path in claims.items() if place in places}
                )
        fault_point("ingestion.after-reject-commit")
        return Kept(new, [event for some in await asyncio.gather(*encoding) for event in some])

    async def publish(self, kept: Kept) -> None:
        """Publish the events about what was just stored."""
        if kept.rejections:
            await self._publish(kept.rejections, kept.events)
            fault_point("ingestion.after-reject-publish")

    async def publish_again(self, cluster: str, places: Collection[Place]) -> None:
        """Publish the events about what was stored earlier: whoever stored it may have died behind that."""
        places = [place for place in places if place not in self._published]
        if not places:
            return
        rows = await self._catalogue.rejected_at(cluster, places)
        for reject_time, together in groupby(rows, key=attrgetter("reject_time")):
            rejections = [row.rejection for row in together]
            events = await asyncio.to_thread(self._rejected_events.encode, rejections, reject_time)
            await self._publish(rejections, events)

    async def _publish(self, rejections: Sequence[Rejection], events: Sequence[Encoded]) -> None:
        await self._rejected_events.publish(events)
        self._published.update(map(_place, rejections))


def _place(rejection: Rejection) -> Place:
    return rejection.topic, rejection.partition, rejection.offset
