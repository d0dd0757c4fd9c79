"""OTLP requests, as the services (Protobuf) and Triton (JSON) send them, become rows."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from headrace.embedded.trace_sink.decode import MalformedExport, parse_http, rows

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
PARENT = "00f067aa0ba902b7"

TRITON_JSON = f"""{{
  "resourceSpans": [{{
    "resource": {{"attributes": [{{"key": "service.name", "value": {{"stringValue": "triton"}}}}]}},
    "scopeSpans": [{{"scope": {{"name": "triton-server"}}, "spans": [{{
      "traceId": "{TRACE}", "spanId": "{SPAN}", "parentSpanId": "{PARENT}", "name": "InferRequest", "kind": 2,
      "startTimeUnixNano": "1700000000000000000", "endTimeUnixNano": "1700000000500000000",
      "attributes": [{{"key": "triton.model_version", "value": {{"intValue": "3"}}}}],
      "links": [{{"traceId": "{TRACE}", "spanId": "{PARENT}"}}],
      "status": {{}}
    }}]}}]
  }}]
}}""".encode()


def test_tritons_json_becomes_a_row() -> None:
    [row] = rows(parse_http(TRITON_JSON, "application/json; charset=utf-8"))
    assert (row.trace_id, row.span_id, row.parent_span_id) == (TRACE, SPAN, PARENT)
    assert (row.service, row.name, row.kind, row.status) == ("triton", "InferRequest", "server", "unset")
    assert row.start_time == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert (row.end_time - row.start_time).total_seconds() == 0.5
    assert row.attributes == {"triton.model_version": 3}
    assert row.links == [{"trace_id": TRACE, "span_id": PARENT}]


def test_protobuf_gives_the_same_row_as_json() -> None:
    as_protobuf = parse_http(TRITON_JSON, "application/json").SerializeToString()
    assert list(rows(parse_http(as_protobuf, "application/x-protobuf"))) == list(
        rows(parse_http(TRITON_JSON, "application/json"))
    )


def test_a_nul_character_never_reaches_postgresql() -> None:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add()
    attribute = span.attributes.add(key="text")
    attribute.value.string_value = "a\x00b"
    [row] = rows(request)
    assert row.attributes == {"text": "a\ufffdb"}


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{", "application/json"),
        (b"[1]", "application/json"),
        (b'{"resourceSpans": 3}', "application/json"),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "zz"}]}]}]}', "application/json"),
        (b"\xff\xff\xff", "application/x-protobuf"),
    ],
)
def test_anything_else_is_malformed(body: bytes, content_type: str) -> None:
    with pytest.raises(MalformedExport):
        parse_http(body, content_type)
