"""CloudEvents 1.0 on Kafka. Binary mode: attributes are headers, the payload is the record's value.

In structured mode, which is read and never written, the value is a JSON object that has both. See the
CloudEvents Kafka protocol binding and the CloudEvents JSON event format. Trace context travels in the headers
`traceparent` and `tracestate` (the distributed tracing extension).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TypeVar

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from headrace.messaging.json_members import json_members
from headrace.telemetry import tracing

SPEC_VERSION = "1.0"
PROTOBUF = "application/protobuf"
JSON = "application/json"
STRUCTURED = "application/cloudevents+json"
_STRUCTURED_PREFIX = "application/cloudevents"

Headers = list[tuple[str, bytes]]
M = TypeVar("M", bound=Message)


class InvalidCloudEvent(Exception):  # noqa: N818 - what it is, not what to call it
    """The record is no CloudEvent: `attribute`, named as its header in binary mode, is missing or wrong."""

    def __init__(self, attribute: str, message: str) -> None:
        super().__init__(f"{attribute}: {message}")
        self.attribute = attribute
        self.message = message


class MalformedPayload(Exception):  # noqa: N818
    """The payload is not what the event's content type and type say."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `id` with `source` is unique, and the key of idempotency."""

    id: str
    source: str
    type: str
    subject: str
    time: datetime
    data: bytes
    content_type: str = PROTOBUF
    traceparent: str = ""
    tracestate: str = ""
    extensions: Mapping[str, str] = field(default_factory=dict)


_OPTIONAL = ("ce_subject", "ce_time")
_REQUIRED = ("ce_specversion", "ce_id", "ce_source", "ce_type")
_KNOWN = frozenset((*_REQUIRED, *_OPTIONAL))
_NO_EXTENSION = _KNOWN | {"ce_datacontenttype", "content-type", "traceparent", "tracestate"}


def encode(event: Event) -> tuple[Headers, bytes]:
    """Return the record's headers and value."""
    texts = {
        **{f"ce_{name}": value for name, value in event.extensions.items()},
        "ce_specversion": SPEC_VERSION,
        "ce_id": event.id,
        "ce_source": event.source,
        "ce_type": event.type,
        "ce_subject": event.subject,
        "ce_time": _time_text(event.time),
        "content-type": event.content_type,
        "traceparent": event.traceparent,
        "tracestate": event.tracestate,
    }
    return [(name, text.encode()) for name, text in texts.items() if text], event.data


@lru_cache(maxsize=64)
def _time_text(time: datetime) -> str:
    # Events of one batch have one time.
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def record_size(key: bytes, headers: Iterable[tuple[str, bytes]], value: bytes) -> int:
    """Bytes of a record: key, value, and headers with their names."""
    return len(key) + len(value) + sum(len(name.encode()) + len(raw) for name, raw in headers)


def decode(headers: Iterable[tuple[str, bytes]], value: bytes | None, *, received: datetime) -> Event:
    """Read a record as an event; `received` stands in for an absent `ce_time`. Raises InvalidCloudEvent."""
    texts = _texts(headers)
    if _is_structured(texts.get("content-type", "")):
        texts, value = _structured(texts, value or b"")
    for name in _REQUIRED:
        if not texts.get(name):
            raise InvalidCloudEvent(name, "is missing")
    if texts["ce_specversion"] != SPEC_VERSION:
        raise InvalidCloudEvent("ce_specversion", f"is {texts['ce_specversion']!r}, must be {SPEC_VERSION!r}")
    return Event(
        id=texts["ce_id"],
        source=texts["ce_source"],
        type=texts["ce_type"],
        subject=texts.get("ce_subject", ""),
        time=parse_time(texts["ce_time"]) if texts.get("ce_time") else received,
        data=value or b"",
        content_type=texts.get("content-type") or texts.get("ce_datacontenttype") or JSON,
        traceparent=texts.get("traceparent", ""),
        tracestate=texts.get("tracestate", ""),
        extensions={
            name.removeprefix("ce_"): texts[name]
            for name in texts.keys() - _NO_EXTENSION
            if name.startswith("ce_")
        },
    )


def in_binary_mode(
    headers: Sequence[tuple[str, bytes]], value: bytes
) -> tuple[Sequence[tuple[str, bytes]], bytes]:
    """A record's headers and value as they are in binary mode; those of a binary event as they came.

    Attributes that are wrong, or missing but for the specversion, stay so. Raises InvalidCloudEvent where a
    structured event cannot be read.
    """
    if not is_structured(headers):
        return headers, value
    texts, data = _structured(_texts(headers), value)
    if not texts.get("ce_specversion"):
        # Any JSON object could be read, such as a payload of which the headers say what it is not.
        raise InvalidCloudEvent("ce_specversion", "is missing")
    # Attributes among the headers of a structured event say nothing.
    kept = [
        (name, raw)
        for name, raw in headers
        if name.lower() not in texts and not name.lower().startswith("ce_")
    ]
    return [*kept, *((name, text.encode()) for name, text in texts.items())], data


def _texts(headers: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    """Headers by their names in lower case; of several the last one counts."""
    try:
        return {(named := name).lower(): (raw or b"").decode() for name, raw in headers}
    except UnicodeDecodeError as error:
        raise InvalidCloudEvent(named, "is not UTF-8") from error


def is_structured(headers: Iterable[tuple[str, bytes]]) -> bool:
    """Whether the attributes are in the payload, by what the headers say."""
    # Of several the last one counts, as in `decode`.
    written = [raw or b"" for name, raw in headers if name.lower() == "content-type"]
    return bool(written) and _is_structured(written[-1].decode(errors="replace"))


def _is_structured(content_type: str) -> bool:
    return media_type(content_type).startswith(_STRUCTURED_PREFIX)


def media_type(content_type: str) -> str:
    """A content type without its parameters."""
    return content_type.partition(";")[0].strip().lower()


_ATTRIBUTE = re.compile("[a-z0-9]+")
_TEXT, _OTHER_SCALAR = re.compile('"'), re.compile("-?[0-9]+|true|false")
_DATA = ("data", "data_base64")


def _structured(headers: Mapping[str, str], value: bytes) -> tuple[dict[str, str], bytes]:
    """The attributes as the headers that they would be in binary mode, and the data."""
    content_type = headers["content-type"]
    if media_type(content_type) != STRUCTURED:
        raise InvalidCloudEvent(
            "content-type", f"is {content_type!r}; of structured events, send {STRUCTURED}"
        )
    try:
        members = json_members(value.decode())
    except ValueError as error:
        raise InvalidCloudEvent("content-type", f"says that the payload is a JSON event: {error}") from error
    texts = {
        # Instrumentation of Kafka clients adds them to any record.
        **{name: headers[name] for name in ("traceparent", "tracestate") if name in headers},
        **dict(_attributes(members)),
    }
    texts["content-type"] = texts.pop("ce_datacontenttype", JSON)
    return texts, _data(members, texts["content-type"])


def _attributes(members: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, written in members.items():
        if name in _DATA or written == "null":
            continue
        header = name if name in ("traceparent", "tracestate") else f"ce_{name}"
        if not _ATTRIBUTE.fullmatch(name):
            # As ASCII: JSON's escapes can write half a character, which is no text to whoever hears of it.
            raise InvalidCloudEvent(
                f"ce_{ascii(name)[1:-1]}", "is no attribute's name: lower-case letters and digits"
            )
        known = header in _KNOWN or name == "datacontenttype"
        if _TEXT.match(written):
            yield header, _text(header, written)
        elif _OTHER_SCALAR.fullmatch(written) and not known:
            yield header, written
        else:
            raise InvalidCloudEvent(header, "must be a string")


def _data(members: Mapping[str, str], content_type: str) -> bytes:
    data, encoded = (members.get(name, "null") for name in _DATA)
    if encoded != "null":
        if data != "null":
            raise InvalidCloudEvent("data", "stands there as data and as data_base64")
        if not _TEXT.match(encoded):
            raise InvalidCloudEvent("data_base64", "must be a string")
        try:
            return base64.b64decode(_text("data_base64", encoded), validate=True)
        except ValueError as error:
            raise InvalidCloudEvent("data_base64", f"is not base64: {error}") from error
    if data == "null":
        return b""
    is_json = media_type(content_type).endswith(("/json", "+json"))
    return (data if is_json or not _TEXT.match(data) else _text("data", data)).encode()


def _text(name: str, written: str) -> str:
    text: str = json.loads(written)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidCloudEvent(name, "holds half a character (a lone surrogate)") from error
    return text


def protobuf_event(
    message: Message,
    *,
    type: str,  # noqa: A002 - the attribute's name
    source: str,
    subject: str,
    id: str,  # noqa: A002
    time: datetime,
    traceparent: str | None = None,
) -> Event:
    """An event with a Protobuf payload, in the trace of `traceparent`, or of the current span where None."""
    return Event(
        id=id,
        source=source,
        type=type,
        subject=subject,
        time=time,
        data=message.SerializeToString(deterministic=True),
        traceparent=tracing.current_traceparent() if traceparent is None else traceparent,
    )


def parse(event: Event, kind: type[M]) -> M:
    """Read the payload as a message, from Protobuf or JSON by the content type. Raises MalformedPayload."""
    form = media_type(event.content_type)
    try:
        if form in {PROTOBUF, "application/x-protobuf"}:
            return kind.FromString(event.data)
        if form == JSON:
            return json_format.Parse(event.data, kind())
    except (DecodeError, json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedPayload(f"not a {kind.DESCRIPTOR.name}: {error}") from error
    raise MalformedPayload(f"content type {event.content_type!r} is neither {PROTOBUF} nor {JSON}")


def parse_time(text: str) -> datetime:
    """Read a `ce_time`. Raises InvalidCloudEvent."""
    try:
        parsed = datetime.fromisoformat(text)
        if parsed.tzinfo is None:
            raise InvalidCloudEvent("ce_time", f"{text!r} has no time zone")
        return parsed.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        # OverflowError: year 1 or 9999 in a zone that leads out of the calendar.
        raise InvalidCloudEvent("ce_time", f"{text!r} is not an RFC 3339 time") from error
