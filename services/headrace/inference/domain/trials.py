"""How requests meet a rollout's version beside its share of them: mirrored to it, and by who asks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from headrace.errors import FieldViolation, InvalidArgument

_HEADER: Final = re.compile("[a-z0-9][a-z0-9-]{0,63}")
# Of all values together, in every Envoy's configuration of the deployment.
MAX_VALUES: Final = 100


@dataclass(frozen=True, slots=True)
class Shadow:
    """What comes before the first step: so many per cent of the requests are also asked of the new version.

    Its answers are compared with the old version's, and nobody gets them.
    """

    share: int = 100
    hold: timedelta = timedelta(0)

    def __post_init__(self) -> None:
        """Raises InvalidArgument/INVALID_ROLLOUT."""
        if not 1 <= self.share <= 100:
            raise invalid("rollout.shadow.share", f"is from 1 to 100 per cent, not {self.share}")
        if self.hold < timedelta(0):
            raise invalid("rollout.shadow.hold", "must not be negative")


@dataclass(frozen=True, slots=True)
class Audience:
    """Callers whose request header has one of the values: they get the new version at every step."""

    header: str
    values: frozenset[str]

    def __post_init__(self) -> None:
        """Raises InvalidArgument/INVALID_ROLLOUT."""
        check_header("rollout.audience.header", self.header)
        if not self.values or len(self.values) > MAX_VALUES:
            raise invalid("rollout.audience.values", f"are from 1 to {MAX_VALUES} of the header's values")


@dataclass(frozen=True, slots=True)
class Trial:
    """What the data plane does for a rollout's version beside giving it its share.

    `mirrored`: per cent of the requests that are also asked of it. `sticky_header`: callers with the same
    value of it get the same version; empty: each request is drawn by itself.
    """

    version: int
    mirrored: int = 0
    sticky_header: str = ""
    audience: Audience | None = None


def check_header(field: str, name: str) -> None:
    """Raises InvalidArgument/INVALID_ROLLOUT for what is no header's name, as gRPC writes them."""
    if not _HEADER.fullmatch(name):
        raise invalid(field, f"is a header's name in lower case, not {name!r}")


def invalid(field: str, description: str) -> InvalidArgument:
    """A plan that no rollout could follow, for this field's sake."""
    return InvalidArgument(
        "INVALID_ROLLOUT", f"{field} {description}", fields=[FieldViolation(field, description)]
    )
