"""A load generator for one HTTP/1.1 request, as light as `headrace.rpc.load` is for gRPC.

One fixed request over kept connections, one call at a time on each. A call counts as answered only when its
status is 200 and its whole body came.
"""

from __future__ import annotations

import asyncio
import re
import time

from headrace.rpc.load import Outcome

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


async def rest_load(address: str, path: str, body: bytes, *, in_flight: int, seconds: float) -> Outcome:
    """POST a JSON body for so long. Raises ConnectionError."""
    host, _, port = address.rpartition(":")
    outcome = Outcome()
    loop = asyncio.get_running_loop()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    until = time.perf_counter() + seconds
    opened = [
        await loop.create_connection(
            lambda: _Connection(head.encode() + body, until, outcome), host, int(port)
        )
        for _ in range(in_flight)
    ]
    started = time.perf_counter()
    for _, connection in opened:
        connection.call()
    await asyncio.gather(*(connection.done for _, connection in opened))
    outcome.elapsed = time.perf_counter() - started
    for transport, _ in opened:
        transport.close()
    return outcome


class _Connection(asyncio.Protocol):
    def __init__(self, request: bytes, until: float, outcome: Outcome) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._until = until
        self._outcome = outcome
        self._begun = 0.0
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def call(self) -> None:
        """Send the request."""
        self._begun = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        length = _LENGTH.search(head)
        if length is None:
            self._fail(ConnectionError("the server does not say how long its answer is"))
        elif len(body) >= int(length[1]):
            self._buffer = b""
            self._ended(head.split(b" ", 2)[1] == b"200")

    def _ended(self, is_ok: bool) -> None:
        now = time.perf_counter()
        if is_ok:
            self._outcome.seconds.append(now - self._begun)
        else:
            self._outcome.failed += 1
        if now < self._until:
            self.call()
        elif not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionError("the connection was closed"))

    def _fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
