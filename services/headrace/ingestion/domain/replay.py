"""A rejected event as it is sent again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from headrace.errors import InvalidArgument
from headrace.ingestion.domain.rejection import Rejection
from headrace.ingestion.domain.source_topic import place_id
from headrace.messaging.claims import ATTRIBUTES
from headrace.messaging.events import InvalidCloudEvent, in_binary_mode, is_structured

REPLAY_OF: Final = "ce_replayof"
"""The header that says which rejected event a sample comes from."""

_CONTENT_TYPE: Final = "datacontenttype"
_CLAIM: Final = frozenset(f"ce_{attribute}" for attribute in ATTRIBUTES)


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

    It keeps its id, so that copies of it are one event. One that had none gets the same at each replay. A
    structured event is sent in binary mode, where each attribute and the data can be corrected by itself. One
    that cannot be read stays structured, and its payload is corrected as a whole.

    Raises InvalidArgument INVALID_CORRECTION for attributes of an event that stays structured.
    """
    unreadable = ""
    try:
        headers, payload = in_binary_mode(rejection.headers, rejection.payload)
    except InvalidCloudEvent as error:
        headers, payload, unreadable = rejection.headers, rejection.payload, f" and cannot be read ({error})"
    changes = {_header(name): text.encode() for name, text in correction.attributes.items()}
    if correction.payload is not None and not is_structured(headers):
        # It takes the place of one that lies elsewhere.
        headers = [header for header in headers if header[0].lower() not in _CLAIM]
    headers = _changed(headers, {**changes, REPLAY_OF: str(rejection.id).encode()})
    if is_structured(headers):
        if changes:
            raise InvalidArgument(
                "INVALID_CORRECTION",
                f"a structured event's attributes stand in its payload{unreadable}; correct the payload to a "
                "whole structured event, or make it a binary one, with another datacontenttype",
            )
    elif not _has_id(headers):
        place = place_id(rejection.cluster, rejection.topic, rejection.partition, rejection.offset)
        headers = _changed(headers, {"ce_id": place.encode()})
    return Replay(rejection.key, headers, payload if correction.payload is None else correction.payload)


def _header(attribute: str) -> str:
    return "content-type" if attribute == _CONTENT_TYPE else f"ce_{attribute}"


def _changed(
    headers: Sequence[tuple[str, bytes]], changes: Mapping[str, bytes]
) -> Sequence[tuple[str, bytes]]:
    return [*(header for header in headers if header[0].lower() not in changes), *changes.items()]


def _has_id(headers: Sequence[tuple[str, bytes]]) -> bool:
    event_id = _last(headers, "ce_id")
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
