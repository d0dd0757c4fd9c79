"""Ids and versions, as they are written on the command line."""

from __future__ import annotations

from typing import Final

import typer

MAX_NUMBER: Final = 2**63 - 1
"""Services number with 64 bits."""


def read_number(text: str) -> int | None:
    """A version's number; None where the text is no number, but maybe a tag. Raises BadParameter."""
    if not text.isdecimal():
        return None
    # Python reads some thousand digits at most.
    if len(text) > len(str(MAX_NUMBER)) or int(text) > MAX_NUMBER:
        raise typer.BadParameter(f"numbers go up to {MAX_NUMBER}")
    return int(text)
