"""An asynchronous request: what its event asks for, its states, and what a failed call means for it.

RECEIVED ──▶ ANSWERED
    │──────▶ FAILED      it was wrong, or its retries are used up
    │──────▶ EXPIRED     its deadline passed first
    └──────▶ CANCELLED   an operator's word
FAILED, EXPIRED, CANCELLED ──▶ RECEIVED   replayed
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final


class RequestState(enum.StrEnum):
    """Whether a request has ended, and how."""

    RECEIVED = "RECEIVED"
    ANSWERED = "ANSWERED"
    FAILED = "FAILED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        """Whether nothing changes it any more but a replay."""
        return self is not RequestState.RECEIVED


class Priority(enum.StrEnum):
    """Whose turn it is where more wait than a model answers at once."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What makes two requests the same: ce_source and ce_id of their events."""

    source: str
    id: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no answer: gRPC's name of the code, a stable reason, a sentence."""

    code: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Terms:
    """What a request asks for beside its answer. `order`: requests of one such text are answered in turn."""

    reply_topic: str
    priority: Priority = Priority.NORMAL
    deadline: datetime | None = None
    retries: int = 0
    order: str = ""


class InvalidTerms(Exception):  # noqa: N818 - what it is, not what to call it
    """An attribute of the request's event is wrong."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


MAX_RETRIES: Final = 100
REQUEST_TOO_LARGE: Final = "REQUEST_TOO_LARGE"
_MILLISECONDS: Final = re.compile("[0-9]{1,12}")
_COUNT: Final = re.compile("[0-9]{1,3}")


def read_terms(
    attributes: Mapping[str, str],
    sent: datetime,
    *,
    reply_topic: str,
    reply_topics: Collection[str],
    retries: int,
) -> Terms:
    """Read an event's extension attributes; `sent` is its time, the rest holds where they are silent.

    Raises InvalidTerms.
    """
    asked_topic = attributes.get("replyto", "")
    if asked_topic and asked_topic not in {reply_topic, *reply_topics}:
        allowed = ", ".join(sorted({reply_topic, *reply_topics}))
        raise InvalidTerms(
            "REPLY_TOPIC_NOT_ALLOWED", f"ce_replyto is {asked_topic!r}; answers may go to: {allowed}"
        )
    return Terms(
        reply_topic=asked_topic or reply_topic,
        priority=_priority(attributes.get("priority", "")),
        deadline=_deadline(attributes.get("deadline", ""), sent),
        retries=_retries(attributes.get("retries", ""), retries),
        order=_order(attributes),
    )


def _priority(text: str) -> Priority:
    if not text:
        return Priority.NORMAL
    try:
        return Priority(text.lower())
    except ValueError as error:
        raise _invalid("priority", text, "one of " + ", ".join(Priority)) from error


def _deadline(text: str, sent: datetime) -> datetime | None:
    if not text:
        return None
    try:
        if _MILLISECONDS.fullmatch(text):
            return sent + timedelta(milliseconds=int(text))
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise _invalid("deadline", text, "an RFC 3339 time with its zone, or milliseconds after ce_time")


def _retries(text: str, default: int) -> int:
    if not text:
        return default
    if not _COUNT.fullmatch(text) or int(text) > MAX_RETRIES:
        raise _invalid("retries", text, f"a number from 0 to {MAX_RETRIES}")
    return int(text)


def _order(attributes: Mapping[str, str]) -> str:
    ordered = attributes.get("ordered", "").lower()
    if ordered not in ("", "true", "false"):
        raise _invalid("ordered", ordered, "true or false")
    if ordered != "true":
        return ""
    key = attributes.get("partitionkey", "")
    if not key:
        raise InvalidTerms(
            "INVALID_ATTRIBUTE", "ce_ordered needs ce_partitionkey: the key whose requests are in order"
        )
    return key


def _invalid(name: str, given: str, wanted: str) -> InvalidTerms:
    return InvalidTerms("INVALID_ATTRIBUTE", f"ce_{name} is {given[:100]!r}, must be {wanted}")


# The request itself is what was refused: asking again brings the same.
_WRONG: Final = frozenset(
    {
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "OUT_OF_RANGE",
        "FAILED_PRECONDITION",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "UNIMPLEMENTED",
    }
)
# Whoever answers is away: not the request's fault, and it waits for as long as it may.
_BUSY: Final = frozenset({"UNAVAILABLE"})


class Cause(enum.Enum):
    """Why a call failed, as far as it says what to do next."""

    REQUEST = enum.auto()
    """It was wrong, and stays so."""
    BUSY = enum.auto()
    """There was no room, or nobody to answer: fewer should be asked at once."""
    OTHER = enum.auto()


class Verdict(enum.Enum):
    """What becomes of a request after a call that failed."""

    GIVE_UP = enum.auto()
    AGAIN = enum.auto()
    WAIT = enum.auto()
    """Again, and it does not count."""


def cause_of(code: str) -> Cause:
    """What a code says by itself.

    RESOURCE_EXHAUSTED is said of a rate and of a size, where waiting helps and where it never does: only who
    knows the words of whoever said it can tell them apart.
    """
    if code in _WRONG:
        return Cause.REQUEST
    return Cause.BUSY if code in _BUSY else Cause.OTHER


def after_failure(cause: Cause, failures: int, retries: int) -> Verdict:
    """Judge a failed call. `failures`: those that count, this one among them."""
    if cause is Cause.REQUEST:
        return Verdict.GIVE_UP
    if cause is Cause.BUSY:
        return Verdict.WAIT
    return Verdict.AGAIN if failures <= retries else Verdict.GIVE_UP
