"""Takes OTLP over HTTP, as Triton sends it, into a test's collector."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.otlp import Collector

from headrace.embedded.trace_sink.decode import parse_http


@asynccontextmanager
async def collecting_http(collector: Collector) -> AsyncIterator[str]:
    """Listen until the block ends; yields the URL to send to."""

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                headers = dict(
                    line.lower().split(": ", 1) for line in head.decode().split("\r\n") if ": " in line
                )
                body = await reader.readexactly(int(headers["content-length"]))
                await collector.Export(parse_http(body, headers["content-type"]), None)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1/traces"
    finally:
        server.close()
