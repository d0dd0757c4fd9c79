"""Personal fields as they are stored: not at all, as pseudonyms, or encrypted.

What takes their place is text: the key's id, a full stop, and base64url. It depends on nothing but the key,
the dataset, the field, the value and, where it is encrypted, the event's place: an event that is read again
makes the same row, so that a replay gives the version's hash. Of two events with the same value pseudonyms
are equal and ciphertexts are not; of two fields, or two datasets, neither are.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from headrace.errors import DataLoss
from headrace.ingestion.domain.columnar import STORED_TYPES
from headrace.ingestion.domain.key_ring import NONCE_BYTES, Key, KeyRing, decrypt
from headrace.ingestion.domain.schema import Field, FieldType, Schema, Treatment

_PLACE: Final = ("_cluster", "_topic", "_partition", "_offset")

Cover = Callable[[pa.Array, pa.Table], pa.Array]
"""What takes the place of a column of texts, given the whole rows."""


class Treatments:
    """A dataset's personal fields, prepared for many batches. Keeps no state between them."""

    def __init__(self, dataset: str, schema: Schema, keys: KeyRing) -> None:
        """Raises FailedPrecondition PRIVACY_KEY_MISSING where a field needs a key and there is none."""
        self._dropped = [field.name for field in schema.personal if field.treated is Treatment.DROP]
        self._covers = {
            field.name: _cover(dataset, field, keys.newest(f"{dataset}.{field.name}"))
            for field in schema.personal
            if field.treated is not Treatment.DROP
        }

    def apply(self, rows: pa.Table) -> pa.Table:
        """The rows as they are stored, from rows with source columns (`source.SOURCE_COLUMNS`)."""
        for name, cover in self._covers.items():
            index = rows.column_names.index(name)
            # One chunk: a value that is there twice is covered once.
            texts = _texts(rows.column(name).combine_chunks())
            rows = rows.set_column(index, name, cover(texts, rows))
        return rows.drop_columns(self._dropped) if self._dropped else rows


def revealed(dataset: str, field: Field, column: pa.Array, keys: KeyRing) -> pa.Array:
    """The values of an encrypted column, of the field's type.

    Raises FailedPrecondition PRIVACY_KEY_MISSING, DataLoss SEAL_BROKEN.
    """
    derived: dict[str, bytes] = {}

    def open_value(text: str | None) -> str | None:
        if text is None:
            return None
        key_id, stop, encoded = text.partition(".")
        if not stop:
            raise DataLoss("SEAL_BROKEN", f"{field.name} holds what was not encrypted by this service")
        if key_id not in derived:
            derived[key_id] = keys.find(key_id).derived(*_use(Treatment.ENCRYPT, dataset, field))
        sealed = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        return decrypt(derived[key_id], sealed).decode()

    texts = pa.array([open_value(text) for text in column.to_pylist()], pa.string())
    if field.type is FieldType.TENSOR:
        tensors = [None if text is None else base64.b64decode(text) for text in texts.to_pylist()]
        return pa.array(tensors, pa.binary())
    return texts.cast(STORED_TYPES[field.type])


def _texts(values: pa.Array) -> pa.Array:
    """Values as the texts that are covered; a tensor's bytes in base64."""
    if pa.types.is_binary(values.type):
        encoded = [None if data is None else base64.b64encode(data).decode() for data in values.to_pylist()]
        return pa.array(encoded, pa.string())
    return values.cast(pa.string())


def _use(treatment: Treatment, dataset: str, field: Field) -> Sequence[str]:
    return treatment.value, dataset, field.name


def _cover(dataset: str, field: Field, key: Key) -> Cover:
    secret = key.derived(*_use(field.treated, dataset, field))
    if field.treated is Treatment.PSEUDONYMISE:
        return _pseudonyms(key.id, secret)
    return _ciphertexts(key.id, secret)


def _pseudonyms(key_id: str, secret: bytes) -> Cover:
    def pseudonym(text: str) -> str:
        return _written(key_id, hmac.digest(secret, text.encode(), "sha256"))

    def cover(texts: pa.Array, _rows: pa.Table) -> pa.Array:
        coded = texts.dictionary_encode()
        names = pa.array(map(pseudonym, coded.dictionary.to_pylist()), pa.string())
        return names.take(coded.indices)

    return cover


def _ciphertexts(key_id: str, secret: bytes) -> Cover:
    cipher = AESGCM(secret)

    def ciphertext(text: str | None, place: str) -> str | None:
        if text is None:
            return None
        data = text.encode()
        # As good as a random one, and the same when the event is read again: it depends on what it encrypts.
        nonce = hmac.digest(secret, f"{place}\0".encode() + data, "sha256")[:NONCE_BYTES]
        return _written(key_id, nonce + cipher.encrypt(nonce, data, None))

    def cover(texts: pa.Array, rows: pa.Table) -> pa.Array:
        places = pc.binary_join_element_wise(*(rows.column(name).cast(pa.string()) for name in _PLACE), "/")
        pairs = zip(texts.to_pylist(), places.to_pylist(), strict=True)
        return pa.array([ciphertext(text, place) for text, place in pairs], pa.string())

    return cover


def _written(key_id: str, data: bytes) -> str:
    return f"{key_id}.{base64.urlsafe_b64encode(data).rstrip(b'=').decode()}"
