"""Identifiers that nobody has to hand out."""

from __future__ import annotations

import uuid


def new_id() -> str:
    """Return a fresh random UUID (version 4) in its usual text form."""
    return str(uuid.uuid4())
