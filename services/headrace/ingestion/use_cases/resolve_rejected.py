"""Rejected events that are sent again, or declared unwanted: each once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from headrace.errors import FailedPrecondition, InvalidArgument, NotFound
from headrace.ingestion import metrics
from headrace.ingestion.domain.key_ring import NO_KEYS, KeyRing
from headrace.ingestion.domain.rejection import State
from headrace.ingestion.domain.replay import Correction, Replay, replay
from headrace.ingestion.domain.sealing import unsealed
from headrace.ingestion.use_cases.cut_versions import require_dataset
from headrace.ingestion.use_cases.ports import Catalogue, RejectedFilter, Repository, Resolution
from headrace.messaging.events import record_size
from headrace.runtime.clock import Clock
from headrace.runtime.faults import fault_point

# What is held in memory at once, and what one transaction resolves of a filter.
_REPLAY_BYTES: Final = 8 * 1024 * 1024
_REPLAY_ENTRIES: Final = 500
_DISCARD_ENTRIES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a filter was worked through: entries above `after`, up to `last`.

    `last` is the newest entry at the beginning: what is replayed and rejected again is not replayed again.
    """

    after: int
    last: int


@dataclass(frozen=True, slots=True)
class Page:
    """How many entries were resolved, which ones cannot be, and where to go on; None: nowhere."""

    count: int
    oversize: Sequence[int]
    rest: Cursor | None


class ReplayRejected:
    """Sends entries to the samples topic again, where they are judged afresh.

    The entry changes its state in the transaction that queues its event. After a crash the queue may publish
    twice: both copies have one id, by which rows are known, and name one entry, by which rejections are.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        clock: Clock,
        max_bytes: int,
        keys: KeyRing = NO_KEYS,
    ) -> None:
        """`max_bytes`: the largest event that can be queued. `keys` open what is sealed."""
        self._catalogue = catalogue
        self._keys = keys
        self._clock = clock
        self._max_bytes = max_bytes

    async def entries(self, ids: Sequence[int], correction: Correction) -> int:
        """Replay all of them, or none. A correction is for one entry.

        Raises NotFound REJECTED_NOT_FOUND or DATASET_NOT_FOUND, FailedPrecondition NOT_PENDING or
        REPLAY_OVERSIZE or NOT_AN_EVENT or PRIVACY_KEY_MISSING, InvalidArgument INVALID_CORRECTION.
        """
        await self._check(ids, correction)
        sizes = await self._catalogue.rejected_sizes(ids)
        async with self._catalogue.transaction() as repository:
            # Also those that do not exist, for that is found here.
            for part in _parts({entry: sizes.get(entry, 0) for entry in sorted(ids)}):
                count, oversize = await self._replay(repository, part, correction)
                if oversize:
                    raise _oversize(oversize[0], self._max_bytes)
                if count < len(part):
                    raise await _unresolvable(repository, part)
        _replayed(len(ids))
        return len(ids)

    async def matching(self, wanted: RejectedFilter, cursor: Cursor | None) -> Page:
        """Replay a page of the PENDING entries, oldest first; record batches that cannot be read are none."""
        begin = cursor or Cursor(0, await self._catalogue.last_rejected())
        sizes = await self._catalogue.pending_sizes(
            wanted, begin.after, begin.last, _REPLAY_ENTRIES, batches=False
        )
        if not sizes:
            return Page(0, (), None)
        part = next(_parts(sizes))
        async with self._catalogue.transaction() as repository:
            count, oversize = await self._replay(repository, part, Correction())
        _replayed(count)
        return Page(count, oversize, replace(begin, after=part[-1]))

    async def _check(self, ids: Sequence[int], correction: Correction) -> None:
        if correction == Correction():
            return
        if len(ids) > 1:
            raise InvalidArgument(
                "INVALID_CORRECTION",
                f"a correction is for one event, not for {len(ids)}; replay them one by one",
            )
        if subject := correction.attributes.get("subject"):
            await require_dataset(self._catalogue, subject)

    async def _replay(
        self, repository: Repository, ids: Sequence[int], correction: Correction
    ) -> tuple[int, Sequence[int]]:
        """Replay those that are PENDING; answer how many, and which ones are too large."""
        replays: dict[int, Replay] = {}
        oversize = []
        for rejection in await repository.lock_pending(ids):
            if rejection.is_batch:
                raise _no_event(rejection.id)
            event = replay(unsealed(rejection, self._keys), correction)
            if record_size(event.key, event.headers, event.payload) > self._max_bytes:
                oversize.append(rejection.id)
            else:
                replays[rejection.id] = event
        if replays:
            await repository.resolve_rejected(list(replays), State.REPLAYED, self._clock())
            await repository.publish_replays(list(replays.values()))
        return len(replays), oversize


class DiscardRejected:
    """Marks entries as not wanted; they stay in the list."""

    def __init__(self, catalogue: Catalogue, *, clock: Clock) -> None:
        self._catalogue = catalogue
        self._clock = clock

    async def entries(self, ids: Sequence[int], reason: str) -> int:
        """Discard all of them, or none.

        Raises NotFound REJECTED_NOT_FOUND, FailedPrecondition NOT_PENDING.
        """
        async with self._catalogue.transaction() as repository:
            done = await repository.resolve_rejected(ids, State.DISCARDED, self._clock(), reason)
            left = [entry for entry in ids if entry not in done]
            if left:
                raise await _unresolvable(repository, left)
        metrics.RESOLVED.labels(State.DISCARDED.value).inc(len(ids))
        return len(ids)

    async def matching(self, wanted: RejectedFilter, reason: str, cursor: Cursor | None) -> Page:
        """Discard a page of the PENDING entries, oldest first."""
        begin = cursor or Cursor(0, await self._catalogue.last_rejected())
        sizes = await self._catalogue.pending_sizes(
            wanted, begin.after, begin.last, _DISCARD_ENTRIES, batches=True
        )
        ids = list(sizes)
        if not ids:
            return Page(0, (), None)
        async with self._catalogue.transaction() as repository:
            done = await repository.resolve_rejected(ids, State.DISCARDED, self._clock(), reason)
        metrics.RESOLVED.labels(State.DISCARDED.value).inc(len(done))
        return Page(len(done), (), replace(begin, after=ids[-1]))


def _parts(sizes: Mapping[int, int]) -> Iterator[Sequence[int]]:
    """The entries in parts that fit into memory; one that does not fit is a part of its own."""
    part: list[int] = []
    held = 0
    for entry, size in sizes.items():
        if part and held + size > _REPLAY_BYTES:
            yield part
            part, held = [], 0
        part.append(entry)
        held += size
    if part:
        yield part


def _replayed(count: int) -> None:
    fault_point("ingestion.after-replay-commit")
    metrics.RESOLVED.labels(State.REPLAYED.value).inc(count)


def _oversize(entry: int, max_bytes: int) -> FailedPrecondition:
    return FailedPrecondition(
        "REPLAY_OVERSIZE",
        f"rejected event {entry} has more than the {max_bytes} bytes that can be replayed; "
        "have its producer send it again, or correct its payload",
    )


def _no_event(entry: int) -> FailedPrecondition:
    return FailedPrecondition(
        "NOT_AN_EVENT",
        f"entry {entry} is a record batch that cannot be read, and no event; have its producer send its "
        "events again, and discard the entry",
    )


async def _unresolvable(repository: Repository, ids: Sequence[int]) -> NotFound | FailedPrecondition:
    """Why one of the entries could not be resolved."""
    found = await repository.resolutions(ids)
    for entry in ids:
        if entry not in found:
            return not_found(entry)
    entry, resolution = next(
        (entry, found[entry]) for entry in ids if found[entry].state is not State.PENDING
    )
    return FailedPrecondition("NOT_PENDING", _not_pending(entry, resolution))


def not_found(entry: int) -> NotFound:
    """There is no such entry."""
    return NotFound(
        "REJECTED_NOT_FOUND", f"there is no rejected event {entry}; `headrace rejected list` lists them"
    )


def _not_pending(entry: int, resolution: Resolution) -> str:
    when = f" at {resolution.time:%Y-%m-%d %H:%M:%S} UTC" if resolution.time else ""
    return f"rejected event {entry} was {resolution.state.value.lower()}{when} and does not wait any more"
