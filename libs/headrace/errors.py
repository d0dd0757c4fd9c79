"""Errors that a user can cause, the same for every service and every protocol.

An error has a `kind` (what sort of thing went wrong; gRPC's canonical codes, AIP-193), a `reason` (a
stable code that programs compare, `google.rpc.ErrorInfo.reason`), a sentence that says what to do, and,
where single fields are at fault, which ones. `headrace.rpc` turns it into a gRPC status and back.

    HeadraceError
    ├── InvalidArgument       the request is wrong whatever the state
    ├── NotFound              the named thing does not exist
    ├── AlreadyExists
    ├── FailedPrecondition    right request, wrong state
    ├── Aborted               a concurrent change won; try again
    ├── ResourceExhausted     a limit was met
    ├── DeadlineExceeded
    ├── Unavailable           try again later
    ├── DataLoss              bytes arrived damaged
    └── Internal              our fault
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")


class ErrorKind(enum.Enum):
    """gRPC's canonical codes, without gRPC: domains raise these."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that breaks a rule, as `google.rpc.BadRequest.FieldViolation`.

    `field` is a path as the user wrote it: "dataset.features.mean_radius.min".
    """

    field: str
    description: str


class HeadraceError(Exception):
    """Base of all errors that a user can cause; raise one of its subclasses."""

    kind: ClassVar[ErrorKind] = ErrorKind.INTERNAL

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        fields: Sequence[FieldViolation] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.fields = tuple(fields)
        self.metadata = dict(metadata or {})


class InvalidArgument(HeadraceError):  # noqa: N818 - the canonical code's own name
    """The request is wrong whatever the state of the system."""

    kind = ErrorKind.INVALID_ARGUMENT


class NotFound(HeadraceError):  # noqa: N818
    """The named thing does not exist."""

    kind = ErrorKind.NOT_FOUND


class AlreadyExists(HeadraceError):  # noqa: N818
    """The named thing exists and differs."""

    kind = ErrorKind.ALREADY_EXISTS


class FailedPrecondition(HeadraceError):  # noqa: N818
    """The request is right and the state is not."""

    kind = ErrorKind.FAILED_PRECONDITION


class Aborted(HeadraceError):  # noqa: N818
    """A concurrent change won; the same request may succeed."""

    kind = ErrorKind.ABORTED


class ResourceExhausted(HeadraceError):  # noqa: N818
    """A limit or quota was met."""

    kind = ErrorKind.RESOURCE_EXHAUSTED


class DeadlineExceeded(HeadraceError):  # noqa: N818
    """It was not done in time."""

    kind = ErrorKind.DEADLINE_EXCEEDED


class Unavailable(HeadraceError):  # noqa: N818
    """A part that is needed does not answer; try again later."""

    kind = ErrorKind.UNAVAILABLE


class DataLoss(HeadraceError):  # noqa: N818
    """Bytes arrived damaged."""

    kind = ErrorKind.DATA_LOSS


class Internal(HeadraceError):  # noqa: N818
    """Our own fault."""

    kind = ErrorKind.INTERNAL


def invalid_fields(reason: str, violations: Sequence[FieldViolation]) -> InvalidArgument:
    """An error that says of each field what is wrong with it."""
    message = "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
    return InvalidArgument(reason, message, fields=violations)


def one_line(error: BaseException) -> str:
    """An error's type and text on one line, as logs and health checks show it.

    Libraries write several, some with colours for a terminal.
    """
    text = " ".join(_COLOUR.sub("", str(error)).split())
    return f"{type(error).__name__}: {text}"
