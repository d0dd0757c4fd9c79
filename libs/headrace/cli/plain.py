"""Protobuf messages as plain values, for JSON, YAML and people."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import timedelta
from typing import cast

from google.protobuf import json_format
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

Plain = str | int | float | bool | None | list["Plain"] | dict[str, "Plain"]


def plain(message: Message) -> dict[str, Plain]:
    """Every field under its proto name, absent messages as null.

    Unlike Protobuf's own JSON, 64-bit integers are numbers and enum values stand without their type's
    prefix ("QUEUED"), which is what scripts compare. Times are ISO 8601, durations seconds, bytes text where
    they are UTF-8 and base64 otherwise.
    """
    return {
        field.name: _field(message, cast("FieldDescriptor", field)) for field in message.DESCRIPTOR.fields
    }


def enum_text(descriptor: EnumDescriptor, number: int) -> str:
    """An enum value's name without the prefix that its type's name gives it."""
    value = descriptor.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = "".join(f"_{letter}" if letter.isupper() else letter for letter in descriptor.name)
    return str(value.name.removeprefix(prefix.lstrip("_").upper() + "_"))


def _field(message: Message, field: FieldDescriptor) -> Plain:
    value = getattr(message, field.name)
    if field.message_type and field.message_type.GetOptions().map_entry:
        item = field.message_type.fields_by_name["value"]
        return {str(key): _value(item, value[key]) for key in sorted(value)}
    if field.is_repeated:
        return [_value(field, item) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _value(field, value)


def _value(field: FieldDescriptor, value: object) -> Plain:
    if isinstance(value, Timestamp):
        return value.ToDatetime().isoformat(timespec="milliseconds") + "Z"
    if isinstance(value, Duration):
        return value.ToTimedelta() / timedelta(seconds=1)
    if isinstance(value, Struct):
        return _whole_numbers(json_format.MessageToDict(value))
    if isinstance(value, Message):
        return plain(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if field.enum_type is not None and isinstance(value, int):
        return enum_text(field.enum_type, value)
    if isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{field.full_name} holds a {type(value).__name__}")


def _whole_numbers(value: object) -> Plain:
    """A Struct's numbers are all floating; 64.0 is shown as 64."""
    if isinstance(value, Mapping):
        return {str(key): _whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a Struct holds a {type(value).__name__}")
