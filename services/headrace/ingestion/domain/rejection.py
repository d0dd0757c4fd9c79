"""Events that did not become rows, and why."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.ingestion.domain.columnar import Fault, Malformed


class Reason(enum.Enum):
    """Why an event was rejected; the value is the stable code."""

    MALFORMED_PAYLOAD = "MALFORMED_PAYLOAD"
    INVALID_CLOUDEVENT = "INVALID_CLOUDEVENT"
    UNKNOWN_DATASET = "UNKNOWN_DATASET"
    SCHEMA_VIOLATION = "SCHEMA_VIOLATION"
    OVERSIZE_EVENT = "OVERSIZE_EVENT"
    SCHEMA_UNKNOWN = "SCHEMA_UNKNOWN"
    SCHEMA_UNUSABLE = "SCHEMA_UNUSABLE"
    CLAIM_FOREIGN = "CLAIM_FOREIGN"
    CLAIM_OVERSIZE = "CLAIM_OVERSIZE"
    CLAIM_MISSING = "CLAIM_MISSING"
    CLAIM_MISMATCH = "CLAIM_MISMATCH"
    MALFORMED_BATCH = "MALFORMED_BATCH"
    OVERSIZE_BATCH = "OVERSIZE_BATCH"
    INTERNAL = "INTERNAL"


class State(enum.Enum):
    """What became of a rejected event."""

    PENDING = "PENDING"
    REPLAYED = "REPLAYED"
    DISCARDED = "DISCARDED"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A reason with the field and the rule (empty where the whole event is at fault) and a sentence."""

    reason: Reason
    message: str
    field: str = ""
    rule: str = ""


def verdict_of(fault: Fault) -> Verdict:
    """The verdict on a payload that is no valid sample."""
    if isinstance(fault, Malformed):
        return Verdict(Reason.MALFORMED_PAYLOAD, fault.message, rule=fault.rule)
    return Verdict(Reason.SCHEMA_VIOLATION, fault.message, field=fault.field, rule=fault.rule.value)


# Not frozen: as many are made as there are bad events, and to make a frozen one takes four times as long.
@dataclass(slots=True)
class Rejection:
    """One rejected event with its original bytes, and where it stands in the source.

    `id` and `replay_of`, the entry whose replay it is, are given to it when it is kept; 0: none.
    `sealed_by`: the key with which the bytes are encrypted (see `sealing`); "": they are as they came.
    `next_offset`: of a record batch that cannot be read, the offset behind it, and its bytes are the payload.
    0: it is one event.
    """

    cluster: str
    topic: str
    partition: int
    offset: int
    verdict: Verdict
    dataset: str
    event_id: str
    traceparent: str
    key: bytes
    payload: bytes
    headers: Sequence[tuple[str, bytes]]
    id: int = 0
    replay_of: int = 0
    sealed_by: str = ""
    next_offset: int = 0

    @property
    def is_batch(self) -> bool:
        """Whether it is a record batch, of which nobody knows what is in it."""
        return self.next_offset > 0
