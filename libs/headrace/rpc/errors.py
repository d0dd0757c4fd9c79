"""HeadraceError as google.rpc.Status and back.

A status carries the error's reason as `google.rpc.ErrorInfo` (domain "headrace.dev") and its fields as
`google.rpc.BadRequest`, so that any client in any language can read them (AIP-193).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2

from headrace import errors
from headrace.errors import ErrorKind, FieldViolation, HeadraceError

DOMAIN: Final = "headrace.dev"
DETAILS_KEY: Final = "grpc-status-details-bin"

# Clients limit the metadata that they accept, several languages at 8 KiB by default, and the message
# travels twice. A longer error is cut here instead of being lost there.
MAX_MESSAGE_CHARACTERS: Final = 1500
MAX_DETAILS_BYTES: Final = 5000

_TYPES: Final[Mapping[ErrorKind, type[HeadraceError]]] = {
    kind.kind: kind
    for kind in (
        errors.InvalidArgument,
        errors.NotFound,
        errors.AlreadyExists,
        errors.FailedPrecondition,
        errors.Aborted,
        errors.ResourceExhausted,
        errors.DeadlineExceeded,
        errors.Unavailable,
        errors.DataLoss,
        errors.Internal,
    )
}
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
# Codes without a kind of their own. CANCELLED reaches a caller, who did not cancel, from a server that stops.
_NEAREST: Final = {
    grpc.StatusCode.OUT_OF_RANGE: ErrorKind.INVALID_ARGUMENT,
    grpc.StatusCode.CANCELLED: ErrorKind.UNAVAILABLE,
}


def code_of(error: HeadraceError) -> grpc.StatusCode:
    """Return the gRPC status code of an error's kind."""
    return _CODES[error.kind.value]


def to_status(error: HeadraceError) -> status_pb2.Status:
    """Return the error with its reason and fields, cut to what every client accepts."""
    status = status_pb2.Status(code=error.kind.value, message=_cut(error.message, MAX_MESSAGE_CHARACTERS))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for key, value in error.metadata.items():
        info.metadata[key] = _cut(value, MAX_MESSAGE_CHARACTERS)
        if info.ByteSize() > MAX_DETAILS_BYTES:
            del info.metadata[key]
    status.details.add().Pack(info)
    if error.fields:
        request = error_details_pb2.BadRequest()
        for violation in error.fields:
            entry = request.field_violations.add(
                field=violation.field, description=_cut(violation.description, MAX_MESSAGE_CHARACTERS)
            )
            if info.ByteSize() + request.ByteSize() > MAX_DETAILS_BYTES:
                request.field_violations.remove(entry)
                break
        status.details.add().Pack(request)
    return status


def from_status(status: status_pb2.Status) -> HeadraceError:
    """Return the error that a status describes."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    reason, metadata, fields = code.name, dict[str, str](), list[FieldViolation]()
    for detail in status.details:
        info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(request):
            fields = [FieldViolation(entry.field, entry.description) for entry in request.field_violations]
    return make_error(code, reason, status.message, fields=fields, metadata=metadata)


def from_rpc_error(error: grpc.RpcError, target: str = "") -> HeadraceError:
    """Return what a failed call means. `target` is named where nobody answered there."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return errors.Internal("UNKNOWN", str(error))
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            return from_status(status_pb2.Status.FromString(value))
    code, message = error.code(), error.details() or error.code().name
    if code is grpc.StatusCode.UNAVAILABLE and target:
        message = f"{target} does not answer: {message}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and target:
        message = f"{target} did not answer in time"
    return make_error(code, code.name, message)


def make_error(
    code: grpc.StatusCode,
    reason: str,
    message: str,
    *,
    fields: Sequence[FieldViolation] = (),
    metadata: Mapping[str, str] | None = None,
) -> HeadraceError:
    """Return the error whose kind is the code's, or Internal where no kind fits."""
    kind = _NEAREST.get(code)
    if kind is None:
        kind = ErrorKind(code.value[0]) if code.value[0] in _KIND_VALUES else ErrorKind.INTERNAL
    return _TYPES[kind](reason, message, fields=fields, metadata=metadata)


_KIND_VALUES: Final = frozenset(kind.value for kind in ErrorKind)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
