"""A load generator for one unary gRPC method, light enough to leave the cores to what is measured.

A gRPC library spends more on a call than the servers here do. This speaks just enough HTTP/2: one fixed block
of headers, one fixed message, as many calls in flight, or as many a second, as asked for. A call counts as
answered only when a whole message came back with the status OK.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK = END_STREAM = 0x1
END_HEADERS = 0x4
HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 3, 4, 5
LARGE_WINDOW = (1 << 31) - 1
# What a server may send us before it is told to go on.
REFILL = 1 << 30
# The trailer "grpc-status: 0". We allow servers no table of headers, so that they write it out, each name and
# value either as it is or in Huffman's code.
STATUS_OK = tuple(
    name + value
    for name in (b"\x0bgrpc-status", b"\x88\x9a\xca\xc8\xb2\x124\xda\x8f")
    for value in (b"\x010", b"\x81\x07")
)
# How long a pacer sleeps between calls that are due.
TICK_SECONDS = 0.002
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
        """Milliseconds within which that share of the calls was answered; not a number where none was."""
        if not self.seconds:
            return math.nan
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
    outcome = Outcome()
    until = time.perf_counter() + seconds
    async with _opened(address, method, message, connections, metadata, until, outcome) as opened:
        started = time.perf_counter()
        for connection in opened:
            connection.call(in_flight // connections, started)
        await asyncio.gather(*(connection.finish() for connection in opened))
        outcome.elapsed = time.perf_counter() - started
    return outcome


async def paced_load(
    address: str,
    method: str,
    message: bytes,
    *,
    rate: float,
    seconds: float,
    connections: int = 2,
) -> Outcome:
    """Call `method` so often a second, however long answers take; times are from when a call was due."""
    outcome = Outcome()
    async with _opened(address, method, message, connections, None, 0.0, outcome) as opened:
        started = time.perf_counter()
        count, begun = int(rate * seconds), 0
        while begun < count and not any(connection.failed for connection in opened):
            due = min(count, int((time.perf_counter() - started) * rate) + 1)
            for number in range(begun, due):
                opened[number % connections].call(1, started + number / rate)
            begun = due
            await asyncio.sleep(TICK_SECONDS)
        await asyncio.gather(*(connection.finish() for connection in opened))
        outcome.elapsed = time.perf_counter() - started
    return outcome


@asynccontextmanager
async def _opened(
    address: str,
    method: str,
    message: bytes,
    connections: int,
    metadata: dict[str, str] | None,
    until: float,
    outcome: Outcome,
) -> AsyncIterator[list[_Connection]]:
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    block = _headers(address, method, metadata or {})
    body = b"\0" + len(message).to_bytes(4, "big") + message
    opened = [
        await loop.create_connection(lambda: _Connection(block, body, until, outcome), host, int(port))
        for _ in range(connections)
    ]
    try:
        yield [connection for _, connection in opened]
    finally:
        for transport, _ in opened:
            transport.close()


class _Connection(asyncio.Protocol):
    """Calls, and where there is time left another one in place of each that was answered."""

    def __init__(self, block: bytes, body: bytes, until: float, outcome: Outcome) -> None:
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_last = False
        self._block = block
        self._body = body
        self._until = until
        self._outcome = outcome
        self._next = 1
        self._begun: dict[int, float] = {}
        self._received: dict[int, int] = {}
        self._unacknowledged = 0
        self._buffer = b""
        self._out: list[bytes] = []
        # What the server takes: of the connection, of each new call, in one frame.
        self._window = self._first_window = 65_535
        self._frame_size = 16_384
        # So many calls at once, beyond which it ends the connection; none before it said so. Those that are
        # due wait for others to end.
        self._most = 0
        self._due: deque[float] = deque()
        # Calls whose message is not all sent: how much of it is, and what more the server takes of it.
        self._sent: dict[int, int] = {}
        self._windows: dict[int, int] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        settings = {HEADER_TABLE_SIZE: 0, INITIAL_WINDOW_SIZE: LARGE_WINDOW}
        pairs = (name.to_bytes(2, "big") + value.to_bytes(4, "big") for name, value in settings.items())
        self._out += [
            PREFACE,
            _frame(SETTINGS, 0, 0, b"".join(pairs)),
            _frame(WINDOW_UPDATE, 0, 0, (LARGE_WINDOW - 65_535).to_bytes(4, "big")),
        ]
        self._flush()

    def call(self, count: int, begun: float) -> None:
        """Begin so many calls, which were due then."""
        self._due.extend([begun] * count)
        self._call_due()
        self._flush()

    def finish(self) -> asyncio.Future[None]:
        """When there is an answer to all that was begun. Raises ConnectionError."""
        self._is_last = True
        self._look_whether_done()
        return self._done

    @property
    def failed(self) -> bool:
        """Whether it was lost."""
        return self._done.done()

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
            self._unacknowledged += length
            if self._unacknowledged > REFILL:
                self._out.append(_frame(WINDOW_UPDATE, 0, 0, self._unacknowledged.to_bytes(4, "big")))
                self._unacknowledged = 0
        elif kind == WINDOW_UPDATE:
            self._widen(stream, int.from_bytes(buffer[at : at + 4], "big"))
        elif kind == SETTINGS and not flags & ACK:
            self._set(buffer[at : at + length])
            self._out.append(_frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self._out.append(_frame(PING, ACK, 0, buffer[at : at + length]))
        elif kind == GOAWAY:
            self._fail(ConnectionError("the server hung up"))
        if kind == HEADERS and flags & END_STREAM:
            trailers = buffer[at : at + length]
            self._ended(stream, any(status in trailers for status in STATUS_OK))
        elif kind == RST_STREAM or (kind == DATA and flags & END_STREAM):
            self._ended(stream, False)

    def _set(self, settings: bytes) -> None:
        self._most = self._most or LAST_STREAM
        for at in range(0, len(settings), 6):
            name = int.from_bytes(settings[at : at + 2], "big")
            value = int.from_bytes(settings[at + 2 : at + 6], "big")
            if name == MAX_FRAME_SIZE:
                self._frame_size = value
            elif name == MAX_CONCURRENT_STREAMS:
                self._most = value
            elif name == INITIAL_WINDOW_SIZE:
                for stream in self._windows:
                    self._windows[stream] += value - self._first_window
                self._first_window = value
        self._call_due()
        self._send_more()

    def _widen(self, stream: int, by: int) -> None:
        if stream == 0:
            self._window += by
        elif stream in self._windows:
            self._windows[stream] += by
        self._send_more()

    def _ended(self, stream: int, is_ok: bool) -> None:
        now = time.perf_counter()
        begun = self._begun.pop(stream, None)
        if begun is None:
            return
        self._sent.pop(stream, None)
        self._windows.pop(stream, None)
        # Five bytes announce a message.
        if self._received.pop(stream, 0) > 5 and is_ok:
            self._outcome.seconds.append(now - begun)
        else:
            self._outcome.failed += 1
        if now < self._until and self._next < LAST_STREAM:
            self._due.append(now)
        self._call_due()
        self._look_whether_done()

    def _look_whether_done(self) -> None:
        if self._is_last and not self._begun and not self._due and not self._done.done():
            self._done.set_result(None)

    def _call_due(self) -> None:
        while self._due and len(self._begun) < self._most:
            self._call(self._due.popleft())

    def _call(self, begun: float) -> None:
        stream, self._next = self._next, self._next + 2
        self._begun[stream] = begun
        self._out.append(_frame(HEADERS, END_HEADERS, stream, self._block))
        self._sent[stream], self._windows[stream] = 0, self._first_window
        self._send(stream)

    def _send_more(self) -> None:
        for stream in list(self._sent):
            if self._window <= 0:
                return
            self._send(stream)

    def _send(self, stream: int) -> None:
        sent, window = self._sent[stream], self._windows[stream]
        while True:
            size = min(len(self._body) - sent, self._frame_size, window, self._window)
            if size <= 0:
                self._sent[stream], self._windows[stream] = sent, window
                return
            part = self._body[sent : sent + size]
            sent, window, self._window = sent + size, window - size, self._window - size
            is_last = sent == len(self._body)
            self._out.append(_frame(DATA, END_STREAM if is_last else 0, stream, part))
            if is_last:
                del self._sent[stream], self._windows[stream]
                return

    def _flush(self) -> None:
        if self._out:
            self._transport.write(b"".join(self._out))  # type: ignore[attr-defined]
            self._out.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionError("the connection was closed"))

    def _fail(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)


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
