"""OTLP's export requests to rows."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

JSON = "application/json"

Scalar = str | int | float | bool | None
Attributes = dict[str, "Scalar | list[Scalar]"]


class MalformedExport(ValueError):  # noqa: N818 - what it is, not what to call it
    """The body is no OTLP export request."""


@dataclass(frozen=True, slots=True)
class SpanRow:
    """One row of `telemetry.spans`; ids in hexadecimal, `parent_span_id` empty for a root."""

    trace_id: str
    span_id: str
    parent_span_id: str
    service: str
    name: str
    kind: str
    start_time: datetime
    end_time: datetime
    status: str
    attributes: Attributes
    links: list[dict[str, str]]


def parse_http(body: bytes, content_type: str) -> ExportTraceServiceRequest:
    """Parse an OTLP/HTTP body, JSON or Protobuf. Raises MalformedExport."""
    try:
        if not content_type.startswith(JSON):
            return ExportTraceServiceRequest.FromString(body)
        document = json.loads(body)
        _hex_ids_to_base64(document)
        return json_format.ParseDict(document, ExportTraceServiceRequest(), ignore_unknown_fields=True)
    except (ValueError, TypeError, AttributeError, json_format.ParseError, DecodeError) as error:
        raise MalformedExport(str(error)) from error


def rows(request: ExportTraceServiceRequest) -> Iterator[SpanRow]:
    """Every span of a request."""
    for resource_spans in request.resource_spans:
        resource = attributes(resource_spans.resource.attributes)
        service = str(resource.get("service.name", "unknown"))
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield _row(service, span)


def attributes(pairs: Iterable[KeyValue]) -> Attributes:
    """OTLP's key-value pairs as plain Python values."""
    return {pair.key: _value(pair.value) for pair in pairs}


def _row(service: str, span: trace_pb2.Span) -> SpanRow:
    return SpanRow(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex(),
        service=service,
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        start_time=_time(span.start_time_unix_nano),
        end_time=_time(span.end_time_unix_nano),
        status=trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_").lower(),
        attributes=attributes(span.attributes),
        links=[{"trace_id": link.trace_id.hex(), "span_id": link.span_id.hex()} for link in span.links],
    )


def _time(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds / 1e9, tz=UTC)


def _value(value: AnyValue) -> Scalar | list[Scalar]:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_scalar(item) for item in value.array_value.values]
    return _scalar(value)


def _scalar(value: AnyValue) -> Scalar:
    match value.WhichOneof("value"):
        case "string_value":
            # PostgreSQL's jsonb takes no NUL character.
            return value.string_value.replace("\x00", "\ufffd")
        case "int_value":
            return value.int_value
        case "double_value":
            return value.double_value
        case "bool_value":
            return value.bool_value
        case "bytes_value":
            return base64.b64encode(value.bytes_value).decode()
        case _:
            return None


def _hex_ids_to_base64(document: object) -> None:
    """OTLP's JSON writes ids in hexadecimal, Protobuf's JSON reads base64: rewrite them in place."""
    if isinstance(document, list):
        for item in document:
            _hex_ids_to_base64(item)
    elif isinstance(document, dict):
        for key, item in document.items():
            if key in {"traceId", "spanId", "parentSpanId"} and isinstance(item, str):
                try:
                    document[key] = base64.b64encode(bytes.fromhex(item)).decode()
                except (ValueError, binascii.Error) as error:
                    raise MalformedExport(f"{key} is not hexadecimal: {item!r}") from error
            else:
                _hex_ids_to_base64(item)
