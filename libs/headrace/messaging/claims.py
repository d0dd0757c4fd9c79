"""Claim checks: events whose payload lies in the object store, by CloudEvents' `dataref` extension.

Such an event has no payload of its own. `ce_dataref` is the address of an object that has it; `ce_datahash`,
`sha256:` and hexadecimal digits, and `ce_datasize` say what the object must be.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

from headrace.messaging.events import Event, InvalidCloudEvent

CLAIMS: Final = "claims"
"""The folder of the object store below which payloads may be claimed."""
REFERENCE: Final = "dataref"
HASH: Final = "datahash"
SIZE: Final = "datasize"
ATTRIBUTES: Final = (REFERENCE, HASH, SIZE)

_SHA256: Final = re.compile("sha256:([0-9a-f]{64})")
_BYTES: Final = re.compile("[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Claim:
    """A payload that lies elsewhere: the address of an object, its SHA-256 in hexadecimal, its bytes."""

    reference: str
    sha256: str
    size: int


def claim_check(event: Event, claim: Claim) -> Event:
    """The event with a claim in the place of its payload."""
    attributes = {REFERENCE: claim.reference, HASH: f"sha256:{claim.sha256}", SIZE: str(claim.size)}
    return replace(event, data=b"", extensions={**event.extensions, **attributes})


def claim_of(event: Event) -> Claim | None:
    """What an event claims; None where it has a payload, which a reference beside it only repeats, or none.

    Raises InvalidCloudEvent where the claim does not say what the payload must be.
    """
    reference = event.extensions.get(REFERENCE, "")
    if event.data or not reference:
        return None
    digest = _SHA256.fullmatch(event.extensions.get(HASH, ""))
    if digest is None:
        raise InvalidCloudEvent(
            f"ce_{HASH}", f"must be sha256: and 64 hexadecimal digits in small letters, beside ce_{REFERENCE}"
        )
    size = event.extensions.get(SIZE, "")
    if not _BYTES.fullmatch(size):
        raise InvalidCloudEvent(f"ce_{SIZE}", f"must be the payload's bytes, beside ce_{REFERENCE}")
    return Claim(reference, digest[1], int(size))


class ClaimedObjects(Protocol):
    """The objects that may be claimed, by their paths."""

    async def size(self, path: str) -> int:
        """Bytes of an object. Raises NotFound."""

    def read(self, path: str, size: int) -> AsyncIterator[bytes]:
        """An object of so many bytes, in parts. Raises NotFound."""


class ClaimMismatch(Exception):  # noqa: N818
    """The object is not what the event says: `attribute`, SIZE or HASH, is what differs."""

    def __init__(self, attribute: str, message: str) -> None:
        super().__init__(message)
        self.attribute = attribute
        self.message = message


async def read_claim(objects: ClaimedObjects, path: str, claim: Claim, into: memoryview) -> None:
    """Read what is claimed into a buffer of the claim's size, and verify it.

    Raises NotFound, ClaimMismatch; the buffer holds anything then.
    """
    size = await objects.size(path)
    if size != claim.size:
        raise ClaimMismatch(SIZE, f"the object has {size} bytes, and the event says {claim.size}")
    digest, end = hashlib.sha256(), 0
    async for part in objects.read(path, claim.size):
        into[end : end + len(part)] = part
        end += len(part)
        await asyncio.to_thread(digest.update, part)
    if digest.hexdigest() != claim.sha256:
        raise ClaimMismatch(HASH, "the object's SHA-256 is not the event's")
