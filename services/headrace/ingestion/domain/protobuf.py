"""Protobuf messages, framed as Confluent's serialisers do, to samples, by the schema of who wrote them.

A message's fields are matched with the dataset's by name; those that the dataset does not name are skipped,
whatever they are. google.protobuf reads the messages, and bounds how deep they nest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from headrace.ingestion.domain.avro import Unreadable, UnusableSchema
from headrace.ingestion.domain.schema import Schema

_TIMESTAMP: Final = "google.protobuf.Timestamp"
# Messages of one field, which tell a value that is not there from zero.
_WRAPPERS: Final = frozenset(
    f"google.protobuf.{kind}Value"
    for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
# Messages nest no deeper in a schema.
_MOST_INDEXES: Final = 32
_MOST_VARINT_BYTES: Final = 10
_MORE: Final = 0x80

_Get = Callable[[Message], object]


@dataclass(frozen=True, slots=True)
class _Kind:
    """One of the schema's messages: what makes one of bytes, and how its fields' values are got."""

    message: type[Message]
    getters: Mapping[str, _Get]
    optional: frozenset[str]
    """Fields of which a message tells whether they are there."""


class ProtobufReader:
    """A writer's schema, prepared for many messages of a dataset. Any thread may use it."""

    format: Final = "protobuf"

    def __init__(self, descriptors: bytes, schema: Schema) -> None:
        """`descriptors`: a FileDescriptorSet whose last file is the schema. Raises UnusableSchema."""
        files = descriptor_pb2.FileDescriptorSet.FromString(descriptors).file
        pool = descriptor_pool.DescriptorPool()
        try:
            for file in files:
                pool.AddSerializedFile(file.SerializeToString())
            # In the order in which they stand in the schema, by which payloads name them.
            self._messages = [
                pool.FindMessageTypeByName(f"{files[-1].package}.{message.name}".lstrip("."))
                for message in files[-1].message_type
            ]
        except (TypeError, LookupError) as error:
            raise UnusableSchema("protobuf", f"is no Protobuf schema: {error}") from error
        if not self._messages:
            raise UnusableSchema("message", "describes no message, which a sample is")
        self._named = {field.name for field in schema.fields}
        self._kinds: dict[tuple[int, ...], _Kind] = {}

    def read(self, payload: bytes) -> dict[str, object] | Unreadable:
        """The values of the dataset's fields; a time is RFC 3339, as in JSON.

        `payload`: where the message stands in the schema, and the message.
        """
        try:
            indexes, start = _indexes(payload)
            kind = self._kind(indexes)
        except (IndexError, ValueError):
            return Unreadable("the payload does not begin with the indexes of a message of its schema")
        try:
            message = kind.message.FromString(payload[start:])
            return {
                name: get(message)
                for name, get in kind.getters.items()
                if name not in kind.optional or message.HasField(name)
            }
        except Exception as error:
            # Anybody may have written these bytes: whatever the decoder stumbles over, they are no message.
            return Unreadable(f"the payload is no message of its schema ({type(error).__name__})")

    def _kind(self, indexes: tuple[int, ...]) -> _Kind:
        kind = self._kinds.get(indexes)
        if kind is None:
            descriptor = self._messages[indexes[0]]
            for index in indexes[1:]:
                # A map's entry is a message to protoc, and none to who wrote the schema.
                declared = [each for each in descriptor.nested_types if not each.GetOptions().map_entry]
                descriptor = declared[index]
            kind = self._kinds[indexes] = self._prepared(descriptor)
        return kind

    def _prepared(self, descriptor: Descriptor) -> _Kind:
        fields = [field for field in descriptor.fields if field.name in self._named]
        return _Kind(
            message_factory.GetMessageClass(descriptor),
            {field.name: _getter(field) for field in fields},
            frozenset(field.name for field in fields if field.has_presence),
        )


def _indexes(payload: bytes) -> tuple[tuple[int, ...], int]:
    """Which message it is: its place in the schema, then in the message around it; and where it begins.

    Raises IndexError or ValueError where the payload does not say it.
    """
    count, position = _varint(payload, 0)
    if not 0 <= count <= _MOST_INDEXES:
        raise ValueError(count)
    # None at all stand for the first message, which most schemas have alone.
    indexes = [] if count else [0]
    for _ in range(count):
        index, position = _varint(payload, position)
        if index < 0:
            raise ValueError(index)
        indexes.append(index)
    return tuple(indexes), position


def _varint(payload: bytes, position: int) -> tuple[int, int]:
    """A zig-zag varint and the position behind it."""
    value = 0
    for place in range(_MOST_VARINT_BYTES):
        byte = payload[position + place]
        value |= (byte & (_MORE - 1)) << 7 * place
        if byte < _MORE:
            return value >> 1 ^ -(value & 1), position + place + 1
    raise ValueError(position)


def _getter(field: FieldDescriptor) -> _Get:
    name = field.name
    if field.is_repeated:
        # As no value of a sample's, whatever is in it.
        return lambda _: []
    if field.message_type is not None:
        if field.message_type.full_name == _TIMESTAMP:
            return lambda message: _as_time(getattr(message, name))
        if field.message_type.full_name in _WRAPPERS:
            return lambda message: getattr(message, name).value
        return lambda _: {}
    if field.enum_type is not None:
        symbols = {value.number: value.name for value in field.enum_type.values}
        # A number that the writer's schema does not name stays one.
        return lambda message: symbols.get(getattr(message, name), getattr(message, name))
    return lambda message: getattr(message, name)


def _as_time(timestamp: object) -> object:
    """A Timestamp in RFC 3339; no value of a sample's where no calendar has it."""
    seconds, nanos = timestamp.seconds, timestamp.nanos  # type: ignore[attr-defined] # of a pool of its own
    try:
        return (_EPOCH + timedelta(seconds=seconds, microseconds=nanos // 1000)).isoformat()
    except OverflowError:
        return {}
