"""A load generator for one unary gRPC method, light enough to leave the cores to what is measured.

A gRPC library spends more on a call than the servers here do. This speaks just enough HTTP/2: one fixed block
of headers, one fixed message, as many calls in flight as asked for. A call counts as answered only when a
whole message came back: an error in gRPC is a response without one.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK = END_STREAM = 0x1
END_HEADERS = 0x4
LARGE_WINDOW = (1 << 31) - 1
# A stream's number has 31 bits; a connection is used for fewer calls.
LAST_STREAM = (1 << 31) - 3


@dataclass
class Outcome:
    """What came of the calls: seconds of each answered one, and how many were not answered."""

    seconds: list[float] = field(default_factory=list)
    failed: int = 0
    elapsed: float = 0.0

    @property
    def rate(self) -> float:
        """Answered calls in a second."""
        return len(self.seconds) / self.elapsed

    def percentile(self, share: float) -> float:
        """Milliseconds within which that share of the calls was answered."""
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def load(
    address: str,
    method: str,
    message: bytes,
    *,
    in_flight: int,
    seconds: float,
    connections: int = 1,
    metadata: dict[str, str] | None = None,
) -> Outcome:
    """Call `method`, "/package.Service/Method", for so long. Raises ConnectionError."""
    host, _, port = address.rpartition(":")
    outcome = Outcome()
    loop = asyncio.get_running_loop()
    block = _headers(address, method, metadata or {})
    body = b"\0" + len(message).to_bytes(4, "big") + message
    until = time.perf_counter() + seconds
    opened = [
        await loop.create_connection(
            lambda: _Connection(block, body, in_flight // connections, until, outcome), host, int(port)
        )
        for _ in range(connections)
    ]
    started = time.perf_counter()
    await asyncio.gather(*(connection.done for _, connection in opened))
    outcome.elapsed = time.perf_counter() - started
    for transport, _ in opened:
        transport.close()
    return outcome


class _Connection(asyncio.Protocol):
    def __init__(self, block: bytes, body: bytes, in_flight: int, until: float, outcome: Outcome) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._block = block
        self._body = body
        self._in_flight = in_flight
        self._until = until
        self._outcome = outcome
        self._next = 1
        self._begun: dict[int, float] = {}
        self._received: dict[int, int] = {}
        self._buffer = b""
        self._out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        settings = b"\0\x04" + LARGE_WINDOW.to_bytes(4, "big")
        self._out += [
            PREFACE,
            _frame(SETTINGS, 0, 0, settings),
            _frame(WINDOW_UPDATE, 0, 0, (LARGE_WINDOW - 65535).to_bytes(4, "big")),
        ]
        for _ in range(self._in_flight):
            self._call()
        self._flush()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data
        at = 0
        while len(buffer) - at >= 9:
            length = int.from_bytes(buffer[at : at + 3], "big")
            if len(buffer) - at < 9 + length:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            stream = int.from_bytes(buffer[at + 5 : at + 9], "big")
            self._take(kind, flags, stream, buffer, at + 9, length)
            at += 9 + length
        self._buffer = buffer[at:]
        self._flush()

    def _take(self, kind: int, flags: int, stream: int, buffer: bytes, at: int, length: int) -> None:
        if kind == DATA:
            self._received[stream] = self._received.get(stream, 0) + length
        elif kind == SETTINGS and not flags & ACK:
            self._out.append(_frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self._out.append(_frame(PING, ACK, 0, buffer[at : at + length]))
        elif kind == GOAWAY:
            self._fail(ConnectionError("the server hung up"))
        if kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
            self._ended(stream)

    def _ended(self, stream: int) -> None:
        now = time.perf_counter()
        begun = self._begun.pop(stream, None)
        if begun is None:
            return
        # Five bytes announce a message.
        if self._received.pop(stream, 0) > 5:
            self._outcome.seconds.append(now - begun)
        else:
            self._outcome.failed += 1
        if now < self._until and self._next < LAST_STREAM:
            self._call()
        elif not self._begun and not self.done.done():
            self.done.set_result(None)

    def _call(self) -> None:
        stream, self._next = self._next, self._next + 2
        self._begun[stream] = time.perf_counter()
        self._out.append(_frame(HEADERS, END_HEADERS, stream, self._block))
        self._out.append(_frame(DATA, END_STREAM, stream, self._body))

    def _flush(self) -> None:
        if self._out:
            self._transport.write(b"".join(self._out))  # type: ignore[attr-defined]
            self._out.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionError("the connection was closed"))

    def _fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return b"".join(
        (len(payload).to_bytes(3, "big"), bytes((kind, flags)), stream.to_bytes(4, "big"), payload)
    )


def _headers(authority: str, path: str, metadata: dict[str, str]) -> bytes:
    """HPACK without compression: literal names and values, never indexed."""
    pairs = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": authority,
        "te": "trailers",
        "content-type": "application/grpc",
        **metadata,
    }
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in pairs.items())


def _text(value: str) -> bytes:
    data = value.encode()
    if len(data) > 126:
        return b"\x7f" + _rest(len(data) - 127) + data
    return bytes((len(data),)) + data


def _rest(number: int) -> bytes:
    """HPACK's continuation of an integer."""
    encoded = bytearray()
    while number >= 128:
        encoded.append(number % 128 + 128)
        number //= 128
    encoded.append(number)
    return bytes(encoded)
