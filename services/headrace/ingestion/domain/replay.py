"""A rejected event as it is sent again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from headrace.ingestion.domain.rejection import Rejection

REPLAY_OF: Final = "ce_replayof"
"""The header that says which rejected event a sample comes from."""

_CONTENT_TYPE: Final = "datacontenttype"


@dataclass(frozen=True, slots=True)
class Correction:
    """What is sent instead of what was rejected: a payload, and CloudEvents attributes by name."""

    payload: bytes | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Replay:
    """A record for the samples topic."""

    key: bytes
    headers: Sequence[tuple[str, bytes]]
    payload: bytes


def replay(rejection: Rejection, correction: Correction) -> Replay:
    """The event as it is sent again, corrected.

    It keeps its id, so that copies of it are one event. One that had none gets the same at each replay.
    """
    changes = dict(_changes(rejection, correction))
    kept = [(name, value) for name, value in rejection.headers if name.lower() not in changes]
    payload = rejection.payload if correction.payload is None else correction.payload
    return Replay(rejection.key, [*kept, *changes.items()], payload)


def _changes(rejection: Rejection, correction: Correction) -> Iterator[tuple[str, bytes]]:
    if not _has_id(rejection):
        place = f"{rejection.cluster}/{rejection.topic}/{rejection.partition}/{rejection.offset}"
        yield "ce_id", place.encode()
    for name, text in correction.attributes.items():
        yield "content-type" if name == _CONTENT_TYPE else f"ce_{name}", text.encode()
    yield REPLAY_OF, str(rejection.id).encode()


def _has_id(rejection: Rejection) -> bool:
    event_id = _last(rejection.headers, "ce_id")
    try:
        return bool(event_id.decode())
    except UnicodeDecodeError:
        return False


def origin_of(headers: Sequence[tuple[str, bytes]]) -> int:
    """The entry that a record says to be the replay of; 0 where it says nothing that can be one."""
    digits = _last(headers, REPLAY_OF)
    # PostgreSQL's largest number has 19 digits.
    return int(digits) if digits.isdigit() and len(digits) < 19 else 0


def _last(headers: Sequence[tuple[str, bytes]], wanted: str) -> bytes:
    """A header's value; of several the last one, as everywhere. b"" where there is none."""
    return next((value for name, value in reversed(headers) if name.lower() == wanted), b"")
