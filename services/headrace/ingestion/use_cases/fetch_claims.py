"""Payloads in the place of claim checks: fetched from the object store, and verified.

A producer has its payload in the store before its event is in the topic. So an object that is not there, or
is not what the event says, will not be there later, and the event is rejected. A store that does not answer
decides nothing: whoever asked tries again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from headrace.errors import NotFound
from headrace.ingestion import metrics
from headrace.ingestion.domain.rejection import Reason, Verdict
from headrace.ingestion.use_cases.envelopes import Claimed, Opened, samples_of
from headrace.ingestion.use_cases.ports import ClaimedPayloads
from headrace.messaging.claims import REFERENCE, SIZE, Claim, ClaimMismatch, read_claim
from headrace.native import Spans
from headrace.runtime.faults import fault_point

_AT_ONCE: Final = 8


class FetchClaims:
    """The use case. In memory it has `max_bytes` of payloads at most, where it is given as many."""

    def __init__(self, payloads: ClaimedPayloads, *, max_bytes: int) -> None:
        """`max_bytes`: of one payload, and of all that are fetched together (see `fitting`)."""
        self._payloads = payloads
        self._max_bytes = max_bytes
        self._slots = asyncio.Semaphore(_AT_ONCE)

    def path(self, claim: Claim) -> str | None:
        """Where a claim's payload lies; None where no payload may."""
        return self._payloads.path(claim.reference)

    def fitting(self, claimed: Collection[Claimed]) -> int:
        """How many of the first of them may be fetched together: at least one, if there is any."""
        held = 0
        for count, one in enumerate(claimed):
            size = 0 if self._refusal(one.claim) else one.claim.size
            if held + size > self._max_bytes:
                return count
            held += size
        return len(claimed)

    async def __call__(self, opened: Opened, datasets: Collection[str]) -> Opened:
        """The claimed samples with their payloads; those whose claims cannot be made good are refused.

        What belongs to none of the datasets stays without a payload: it is rejected all the same.
        Raises Unavailable STORE_UNAVAILABLE: nothing may be judged then.
        """
        if not opened.claimed:
            return opened
        samples, refused, wanted = list(opened.samples), list(opened.refused), []
        for one in opened.claimed:
            if one.event.subject not in datasets:
                samples.append(samples_of([(one.index, one.event)], Spans.of([b""])))
            elif refusal := self._refusal(one.claim):
                refused.append((one.index, refusal))
            else:
                wanted.append(one)
        ends = np.cumsum([one.claim.size for one in wanted], dtype=np.int64)
        buffer = np.empty(ends[-1] if wanted else 0, np.uint8)
        places = [(int(end) - one.claim.size, int(end)) for one, end in zip(wanted, ends, strict=True)]
        faults = await self._fetch_all(wanted, [buffer.data[start:end] for start, end in places])
        for one, (start, end), fault in zip(wanted, places, faults, strict=True):
            if fault is None:
                payload = Spans(buffer, np.array([start]), np.array([end - start]))
                samples.append(samples_of([(one.index, one.event)], payload))
                metrics.CLAIMED_BYTES.inc(end - start)
            else:
                refused.append((one.index, fault))
        fault_point("ingestion.after-claim-fetch")
        return replace(opened, samples=samples, refused=refused, claimed=())

    def parts(self, opened: Opened) -> Iterator[Opened]:
        """The samples in parts of which each has no more claimed ones than may be fetched together."""
        claimed = opened.claimed
        count = self.fitting(claimed)
        yield replace(opened, claimed=claimed[:count])
        while claimed := claimed[count:]:
            count = self.fitting(claimed)
            yield replace(opened, samples=(), refused=(), claimed=claimed[:count])

    async def _fetch_all(
        self, wanted: Collection[Claimed], into: Collection[memoryview]
    ) -> Collection[Verdict | None]:
        """What is wrong with each claim; None: nothing, and its payload is in its place."""
        fetching = [
            asyncio.create_task(self._fetch(one.claim, place))
            for one, place in zip(wanted, into, strict=True)
        ]
        try:
            return await asyncio.gather(*fetching)
        finally:
            # None writes into a buffer that nobody waits for.
            for task in fetching:
                task.cancel()
            await asyncio.gather(*fetching, return_exceptions=True)

    async def _fetch(self, claim: Claim, into: memoryview) -> Verdict | None:
        path = self._payloads.path(claim.reference)
        assert path is not None
        async with self._slots:
            try:
                await read_claim(self._payloads, path, claim, into)
            except NotFound:
                return _missing()
            except ClaimMismatch as error:
                return _mismatch(error)
        return None

    def _refusal(self, claim: Claim) -> Verdict | None:
        """Why a claim's payload is not even asked for."""
        if self._payloads.path(claim.reference) is None:
            message = f"a payload may be claimed from {self._payloads.folder} only, by plain names"
            return Verdict(Reason.CLAIM_FOREIGN, message, field=f"ce_{REFERENCE}", rule="location")
        if claim.size > self._max_bytes:
            message = f"the payload has {claim.size} bytes, and {self._max_bytes} is the most"
            return Verdict(Reason.CLAIM_OVERSIZE, message, field=f"ce_{SIZE}", rule="max_claim_bytes")
        return None


def _missing() -> Verdict:
    message = "there is no such object; send the event after its payload is in the store, or again"
    return Verdict(Reason.CLAIM_MISSING, message, field=f"ce_{REFERENCE}", rule="exists")


def _mismatch(error: ClaimMismatch) -> Verdict:
    rule = "size" if error.attribute == SIZE else "sha256"
    return Verdict(Reason.CLAIM_MISMATCH, error.message, field=f"ce_{error.attribute}", rule=rule)
