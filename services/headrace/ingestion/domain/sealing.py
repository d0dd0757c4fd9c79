"""Rejected events whose bytes may hold personal data, kept encrypted."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Final

import orjson

from headrace.ingestion.domain.key_ring import KeyRing
from headrace.ingestion.domain.rejection import Rejection
from headrace.ingestion.domain.replay import REPLAY_OF, origin_of

_USE: Final = "rejected"


def seal(rejection: Rejection, keys: KeyRing) -> Rejection:
    """The same, its key, headers and payload encrypted together as a payload.

    Which entry it is the replay of stays readable: by that, copies of a replay are known.
    Raises FailedPrecondition PRIVACY_KEY_MISSING.
    """
    headers = [[name, base64.b64encode(value).decode()] for name, value in rejection.headers]
    head = orjson.dumps([len(rejection.key), headers], option=orjson.OPT_APPEND_NEWLINE)
    key_id, sealed = keys.seal(head + rejection.key + rejection.payload, _USE)
    origin = origin_of(rejection.headers)
    return replace(
        rejection,
        key=b"",
        headers=[(REPLAY_OF, str(origin).encode())] if origin else [],
        payload=sealed,
        sealed_by=key_id,
    )


def unsealed(rejection: Rejection, keys: KeyRing) -> Rejection:
    """The inverse of `seal`; what is not sealed stays as it is.

    Raises FailedPrecondition PRIVACY_KEY_MISSING, DataLoss SEAL_BROKEN.
    """
    if not rejection.sealed_by:
        return rejection
    head, _, body = keys.open(rejection.sealed_by, rejection.payload, _USE).partition(b"\n")
    key_length, headers = orjson.loads(head)
    return replace(
        rejection,
        key=body[:key_length],
        headers=[(name, base64.b64decode(value)) for name, value in headers],
        payload=body[key_length:],
        sealed_by="",
    )
