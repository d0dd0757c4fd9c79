"""Claim checks: events whose payload lies in the object store, by CloudEvents' `dataref` extension.

Such an event has no payload of its own. `ce_dataref` is the address of an object that has it; `ce_datahash`,
`sha256:` and hexadecimal digits, and `ce_datasize` say what the object must be.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

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
