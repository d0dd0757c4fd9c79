"""Spans sent over gRPC and HTTP are rows, each once, whatever happens to PostgreSQL in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from tests.support.proxy import proxied
from tests.support.waiting import eventually

from headrace.embedded.parts import free_port
from headrace.embedded.parts.module import PythonModule
from headrace.embedded.trace_sink.decode import parse_http, rows
from headrace.embedded.trace_sink.store import SpanStore

TRACE = "0af7651916cd43dd8448eb211c80319c"
NOW = 1_900_000_000_000_000_000


def export(*span_ids: str, name: str = "work", at: int = NOW) -> bytes:
    spans = ",".join(
        f'{{"traceId": "{TRACE}", "spanId": "{span_id}", "name": "{name}", "kind": 2,'
        f' "startTimeUnixNano": "{at}", "endTimeUnixNano": "{at + 1_000_000}",'
        f' "attributes": [{{"key": "headrace.job", "value": {{"stringValue": "job-1"}}}}]}}'
        for span_id in span_ids
    )
    service = '{"attributes": [{"key": "service.name", "value": {"stringValue": "triton"}}]}'
    return (
        f'{{"resourceSpans": [{{"resource": {service}, "scopeSpans": [{{"spans": [{spans}]}}]}}]}}'.encode()
    )


def request(*span_ids: str, name: str = "work", at: int = NOW) -> trace_service_pb2.ExportTraceServiceRequest:
    return parse_http(export(*span_ids, name=name, at=at), "application/json")


async def post(port: int, body: bytes) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        "POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    status = int((await reader.readline()).split()[1])
    await reader.read()
    writer.close()
    return status


@pytest.fixture
async def sink(postgres_dsn: str, tmp_path: Path) -> AsyncIterator[tuple[str, int]]:
    """Address over gRPC and port over HTTP of a sink that runs."""
    grpc_port, http_port = free_port(), free_port()
    part = PythonModule(
        "trace-sink",
        "headrace.embedded.trace_sink",
        tmp_path,
        tmp_path,
        http_port=http_port,
        ready_path="/healthz",
        arguments=["--grpc", f"127.0.0.1:{grpc_port}", "--http", f"127.0.0.1:{http_port}"],
        settings={"HEADRACE_POSTGRES_DSN": postgres_dsn},
    )
    await part.start()
    yield f"127.0.0.1:{grpc_port}", http_port
    await part.stop()


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(postgres_dsn, min_size=1, max_size=2) as pool:
        yield pool


async def until_stored(pool: asyncpg.Pool, count: int) -> list[asyncpg.Record]:

    async def stored() -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await pool.fetch("SELECT * FROM telemetry.spans ORDER BY span_id")
        return rows

    return await eventually(stored, lambda rows: len(rows) >= count)


async def test_both_protocols_end_in_one_table(sink: tuple[str, int], pool: asyncpg.Pool) -> None:
    address, http_port = sink
    async with grpc.aio.insecure_channel(address) as channel:
        stub = trace_service_pb2_grpc.TraceServiceStub(channel)  # type: ignore[no-untyped-call]
        await stub.Export(request("00000000000000a1"))
    assert await post(http_port, export("00000000000000a2")) == 200
    first, second = await until_stored(pool, 2)
    assert (first["trace_id"], first["span_id"]) == (TRACE, "00000000000000a1")
    assert (second["service"], second["name"], second["kind"]) == ("triton", "work", "server")


async def test_a_span_sent_twice_is_one_row(sink: tuple[str, int], pool: asyncpg.Pool) -> None:
    _, http_port = sink
    for _ in range(2):
        assert await post(http_port, export("00000000000000b1", "00000000000000b1")) == 200
    assert await post(http_port, export("00000000000000b2")) == 200
    assert len(await until_stored(pool, 2)) == 2


async def test_what_is_no_export_is_refused_and_the_next_one_taken(
    sink: tuple[str, int], pool: asyncpg.Pool
) -> None:
    _, http_port = sink
    assert await post(http_port, b"{") == 400
    assert await post(http_port, export("00000000000000c1")) == 200
    await until_stored(pool, 1)


async def test_spans_wait_for_postgresql(postgres_dsn: str, pool: asyncpg.Pool) -> None:
    async with (
        proxied(postgres_dsn) as (proxy, behind),
        asyncpg.create_pool(behind, min_size=1, max_size=1) as cut_off,
    ):
        store = SpanStore(cut_off)
        await store.prepare()
        await proxy.cut()
        writer = asyncio.create_task(store.run())
        store.put(rows(request("00000000000000d1")))

        async def waiting() -> bool:
            return store.waiting

        await eventually(waiting, bool)
        await proxy.open()
        await until_stored(pool, 1)
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)


async def test_one_span_that_postgresql_refuses_costs_no_other(pool: asyncpg.Pool) -> None:
    store = SpanStore(pool)
    await store.prepare()
    good = [*rows(request("00000000000000e1")), *rows(request("00000000000000e2"))]
    [bad] = rows(request("00000000000000e3", name="nul\\u0000"))
    store.put([good[0], bad, good[1]])
    await store.flush()
    assert len(await until_stored(pool, 2)) == 2
    assert store.dropped == 1


async def test_a_full_queue_drops_and_counts(pool: asyncpg.Pool) -> None:
    store = SpanStore(pool, capacity=2)
    store.put(rows(request(*(f"00000000000000f{index}" for index in range(5)))))
    assert store.dropped == 3


async def test_old_spans_are_removed(pool: asyncpg.Pool) -> None:
    store = SpanStore(pool, retention_hours=1)
    await store.prepare()
    store.put(rows(request("0000000000000001", at=1_000_000_000_000_000_000)))
    store.put(rows(request("0000000000000002")))
    await store.flush()
    await store.prepare()
    assert [row["span_id"] for row in await until_stored(pool, 1)] == ["0000000000000002"]
