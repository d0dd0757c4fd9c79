"""What happened to a model, for whoever asks later."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime


class Action(enum.StrEnum):
    """What was done."""

    MODEL_CREATED = "MODEL_CREATED"
    GATES_CHANGED = "GATES_CHANGED"
    VERSION_OPENED = "VERSION_OPENED"
    VERSION_PROMOTED = "VERSION_PROMOTED"
    VERSION_REFUSED = "VERSION_REFUSED"
    ALIAS_MOVED = "ALIAS_MOVED"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One thing that was done to a model. `version` is 0 where no version is meant."""

    model: str
    action: Action
    version: int
    details: str
    traceparent: str
    time: datetime
