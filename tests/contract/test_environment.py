"""What the lock files cannot promise by themselves."""

from __future__ import annotations


def test_opentelemetrys_messages_are_not_xds_protos_old_copy() -> None:
    from opentelemetry.proto.trace.v1 import trace_pb2

    assert "scope_spans" in trace_pb2.ResourceSpans.DESCRIPTOR.fields_by_name
