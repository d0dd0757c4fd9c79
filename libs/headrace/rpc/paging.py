"""List pages (AIP-158): a page's size, and opaque tokens for where the next one begins.

A repository asks for `size + 1` rows; `cut` keeps `size` of them and makes the token of the next page
from the last row kept. Rows that come or go between two pages move nothing, as an offset would.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, Protocol, TypeVar

from headrace.errors import FieldViolation, InvalidArgument

DEFAULT_SIZE: Final = 50
MAX_SIZE: Final = 1000

Position = tuple[str | int, ...]
"""The sort key of a row: where a page ends."""

T = TypeVar("T")


class PageRequest(Protocol):
    """What the requests of all paged RPCs have."""

    page_token: str


class Page(Protocol):
    """What their responses have."""

    @property
    def next_page_token(self) -> str:
        """Where the next page begins; empty behind the last one."""


R = TypeVar("R", bound=PageRequest)
P = TypeVar("P", bound=Page)


async def pages(call: Callable[[R], Awaitable[P]], request: R) -> AsyncIterator[P]:
    """Ask a paged RPC for one page after the other, from the request's own on, by changing its token."""
    while True:
        page = await call(request)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def page_size(requested: int) -> int:
    """Return how many items a page has: what was asked for within limits, 50 for 0."""
    return min(requested, MAX_SIZE) if requested > 0 else DEFAULT_SIZE


def encode_token(position: Position) -> str:
    """Return an opaque token for a position."""
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


def decode_token(token: str, *kinds: type[str | int]) -> Position | None:
    """Return a token's position, its parts of the given kinds; None for the first page (an empty token).

    Raises InvalidArgument/INVALID_PAGE_TOKEN where the token is not one of this listing's.
    """
    if not token:
        return None
    try:
        parts = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        parts = None
    if not isinstance(parts, list) or [type(part) for part in parts] != list(kinds):
        message = "page_token is not one that this listing gave; begin again with an empty one"
        raise InvalidArgument(
            "INVALID_PAGE_TOKEN", message, fields=[FieldViolation("page_token", "not one of this listing's")]
        )
    return tuple(parts)


def cut(rows: Sequence[T], size: int, position: Callable[[T], Position]) -> tuple[list[T], str]:
    """Return at most `size` rows, and the next page's token: "" where these are the last."""
    page = list(rows[:size])
    return page, encode_token(position(page[-1])) if len(rows) > size and page else ""
