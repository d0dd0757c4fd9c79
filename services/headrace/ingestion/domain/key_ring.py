"""The secrets that personal data is covered with.

The newest key writes and all of them read, so that a key can be replaced without losing what was written
before. From each key one is derived for each use (HKDF, RFC 5869): what one of them gives away says nothing
of the others.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from headrace.errors import DataLoss, FailedPrecondition, InvalidArgument

MIN_KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
_ID: Final = re.compile(r"^[a-z0-9][a-z0-9-]{0,31}$")


@dataclass(frozen=True, slots=True)
class Key:
    """A secret and its name, which stands beside what was written with it."""

    id: str
    secret: bytes = field(repr=False)

    def derived(self, *use: str) -> bytes:
        """The key of 32 bytes for one use."""
        return _derived(self.secret, use)


@lru_cache(maxsize=1024)
def _derived(secret: bytes, use: tuple[str, ...]) -> bytes:
    info = "\0".join(("headrace", *use)).encode()
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Keys, the newest one last; there may be none."""

    keys: tuple[Key, ...] = ()

    def newest(self, what: str) -> Key:
        """The key to write with. Raises FailedPrecondition PRIVACY_KEY_MISSING; `what` needs it."""
        if not self.keys:
            raise FailedPrecondition(
                "PRIVACY_KEY_MISSING",
                f"{what} needs a key, and this service has none: set HEADRACE_INGESTION_PRIVACY_KEYS_FILE or "
                "HEADRACE_INGESTION_PRIVACY_KEYS",
            )
        return self.keys[-1]

    def find(self, key_id: str) -> Key:
        """The key of that name. Raises FailedPrecondition PRIVACY_KEY_MISSING."""
        for key in self.keys:
            if key.id == key_id:
                return key
        raise FailedPrecondition(
            "PRIVACY_KEY_MISSING",
            f'this service does not have the key "{key_id}" with which that was encrypted; put it back into '
            "the key ring, before the newest one",
        )

    def seal(self, data: bytes, *use: str) -> tuple[str, bytes]:
        """The data encrypted with the newest key, and that key's name."""
        key = self.newest("what is kept encrypted")
        nonce = os.urandom(NONCE_BYTES)
        return key.id, nonce + AESGCM(key.derived(*use)).encrypt(nonce, data, None)

    def open(self, key_id: str, sealed: bytes, *use: str) -> bytes:
        """The inverse of `seal`. Raises FailedPrecondition PRIVACY_KEY_MISSING, DataLoss SEAL_BROKEN."""
        return decrypt(self.find(key_id).derived(*use), sealed)


NO_KEYS: Final = KeyRing()


def decrypt(key: bytes, sealed: bytes) -> bytes:
    """What was encrypted, of a nonce and a ciphertext. Raises DataLoss SEAL_BROKEN."""
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
    except (InvalidTag, ValueError) as error:
        raise DataLoss(
            "SEAL_BROKEN", "what was encrypted cannot be read: it was changed, or its key has another name"
        ) from error


def parse_keys(text: str) -> KeyRing:
    """Keys as `ID=BASE64`, the newest one last: one a line, or separated by commas. "#" begins a comment.

    Raises InvalidArgument INVALID_KEY_RING, which quotes no secret.
    """
    keys: dict[str, Key] = {}
    for number, entry in enumerate(_entries(text), start=1):
        name, equals, encoded = (part.strip() for part in entry.partition("="))
        if not equals or not _ID.match(name):
            raise _invalid(number, f"must be ID=BASE64, with an id that matches {_ID.pattern}")
        if name in keys:
            raise _invalid(number, f'has the id "{name}", which another key has')
        try:
            secret = base64.b64decode(encoded, validate=True)
        except binascii.Error as error:
            raise _invalid(number, "is not base64") from error
        if len(secret) < MIN_KEY_BYTES:
            raise _invalid(number, f"has {len(secret)} bytes, and {MIN_KEY_BYTES} are the least")
        keys[name] = Key(name, secret)
    return KeyRing(tuple(keys.values()))


def _entries(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.lstrip().startswith("#"):
            yield from (entry for entry in line.split(",") if entry.strip())


def _invalid(number: int, what: str) -> InvalidArgument:
    return InvalidArgument("INVALID_KEY_RING", f"key {number} of the key ring {what}")
