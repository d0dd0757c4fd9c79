"""/metrics, /healthz and /readyz: a few GET requests, answered from the service's own event loop.

Answering from the loop is deliberate: a loop that is stuck fails its liveness check.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

from headrace.runtime.health import Health

logger = logging.getLogger(__name__)

REQUEST_SECONDS = 5.0
MAX_HEAD_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class _Response:
    status: HTTPStatus
    content_type: str
    body: bytes

    def encode(self, *, with_body: bool = True) -> bytes:
        head = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\n"
            f"Content-Type: {self.content_type}\r\n"
            f"Content-Length: {len(self.body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        return head.encode() + (self.body if with_body else b"")


def _json(status: HTTPStatus, content: object) -> _Response:
    return _Response(status, "application/json", json.dumps(content).encode() + b"\n")


def _respond(method: str, path: str, accept: str, health: Health) -> _Response:
    if method not in ("GET", "HEAD"):
        return _json(HTTPStatus.METHOD_NOT_ALLOWED, {"error": "only GET is answered here"})
    match path.partition("?")[0]:
        case "/healthz":
            return _json(HTTPStatus.OK, {"status": "alive"})
        case "/readyz":
            status = HTTPStatus.OK if health.ready else HTTPStatus.SERVICE_UNAVAILABLE
            return _json(
                status,
                {
                    "ready": health.ready,
                    "draining": health.draining,
                    "components": {
                        name: {"ready": component.ready, "message": component.message}
                        for name, component in health.components.items()
                    },
                },
            )
        case "/metrics":
            encoder, content_type = choose_encoder(accept)
            return _Response(HTTPStatus.OK, content_type, encoder(REGISTRY))
        case _:
            return _json(HTTPStatus.NOT_FOUND, {"error": "try /metrics, /healthz or /readyz"})


def _parse(head: bytes) -> tuple[str, str, str]:
    """Return method, path and Accept header of a request head; raise ValueError if it is not one."""
    request_line, *header_lines = head.decode("latin-1").split("\r\n")
    method, path, _version = request_line.split(" ")
    headers = {
        name.strip().lower(): value.strip()
        for name, separator, value in (line.partition(":") for line in header_lines)
        if separator
    }
    return method, path, headers.get("accept", "")


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, health: Health) -> None:
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
            method = ""
            try:
                method, path, accept = _parse(head)
            except ValueError:
                response = _json(HTTPStatus.BAD_REQUEST, {"error": "not an HTTP request"})
            else:
                response = _respond(method, path, accept, health)
            writer.write(response.encode(with_body=method != "HEAD"))
            await writer.drain()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        logger.debug("health request went unanswered: %r", error)
    finally:
        writer.close()


def split_address(address: str) -> tuple[str, int]:
    """Split "host:port" ("[::1]:80" too); raise ValueError with what is wrong."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit():
        raise ValueError(f"{address!r} is not an address; write host:port, such as 127.0.0.1:7201")
    return host.strip("[]"), int(port)


@asynccontextmanager
async def serve_http(address: str, health: Health) -> AsyncIterator[int]:
    """Answer health and metrics requests at `address`; yield the bound port (that of port 0, too)."""
    host, port = split_address(address)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _answer(reader, writer, health)

    server = await asyncio.start_server(answer, host, port, limit=MAX_HEAD_BYTES)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()
