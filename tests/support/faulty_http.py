"""A proxy in front of an HTTP server that fails in the ways that servers, and the ways to them, fail."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from tests.support.proxy import Proxy

_END_OF_HEAD: Final = b"\r\n\r\n"


class Fault(enum.Enum):
    """What the proxy does with a request."""

    NONE = "none"
    ERROR = "the answer is 500"
    SILENCE = "it is not answered"
    UNHEARD = "it is carried out, and its answer is lost"
    HALF_SENT = "half of it comes to the server, and nothing more of either side"
    HALF_ANSWERED = "it is carried out, and half of its answer comes"


@dataclass(frozen=True)
class Requests:
    """Requests with this method whose path holds the pattern; of these only one, if need be.

    `number` is that one's, counted from 1 since the proxy was told to fail.
    """

    method: str = ""
    path: str = ""
    number: int | None = None

    def has(self, request: bytes) -> bool:
        """Whether this is one of the kind, whatever its number."""
        method, path, _ = request.partition(b"\r\n")[0].decode().split(" ")
        return self.method in {"", method} and re.search(self.path, path) is not None


_ALL: Final = Requests()


@dataclass
class FaultyHttp(Proxy):
    """`asked` counts the requests that met the fault."""

    fault: Fault = Fault.NONE
    asked: int = 0
    _failing: Requests = _ALL
    _seen: int = 0
    _healed: asyncio.Event = field(default_factory=asyncio.Event)

    async def fail(self, fault: Fault, failing: Requests = _ALL) -> None:
        """From now on, these requests; connections that there are break, for they carry requests past it."""
        self.fault, self.asked = fault, 0
        self._failing, self._seen = failing, 0
        self._healed.clear()
        for writer in tuple(self._writers):
            writer.transport.abort()

    def heal(self) -> None:
        self.fault = Fault.NONE
        self._healed.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.fault is Fault.NONE:
            await super()._accept(reader, writer)
            return
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            request = await _request(reader)
            writer.write(await self._answer(request, self._fault_of(request)))
            await writer.drain()
        writer.close()

    def _fault_of(self, request: bytes) -> Fault:
        if not self._failing.has(request):
            return Fault.NONE
        self._seen += 1
        if self._failing.number not in {None, self._seen}:
            return Fault.NONE
        self.asked += 1
        return self.fault

    async def _answer(self, request: bytes, fault: Fault) -> bytes:
        """What the client hears before its connection is closed."""
        match fault:
            case Fault.ERROR:
                return b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            case Fault.SILENCE:
                await self._healed.wait()
                return b""
            case Fault.HALF_SENT:
                await self._upstream_answer(_half(request), cut=True)
                return b""
        answer = await self._upstream_answer(request)
        match fault:
            case Fault.UNHEARD:
                return b""
            case Fault.HALF_ANSWERED:
                return _half(answer)
            case _:
                return answer

    async def _upstream_answer(self, request: bytes, *, cut: bool = False) -> bytes:
        """All that the server says; where the request is cut, once it is done with what it has of it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        try:
            writer.write(request.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
            if cut:
                writer.write_eof()
            return await reader.read()
        finally:
            writer.close()


async def _request(reader: asyncio.StreamReader) -> bytes:
    """One request, whole."""
    head = await reader.readuntil(_END_OF_HEAD)
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return head + await reader.readexactly(int(line.partition(b":")[2]))
    return head


def _half(message: bytes) -> bytes:
    """All of its head and half of its body; of a message without a body, half of the head."""
    head, end, body = message.partition(_END_OF_HEAD)
    return head + end + body[: len(body) // 2] if body else head[: len(head) // 2]


@contextlib.asynccontextmanager
async def faulty_http(port: int) -> AsyncIterator[FaultyHttp]:
    """A proxy that is open, and forwards until it is told to fail."""
    proxy = FaultyHttp(port)
    await proxy.open()
    try:
        yield proxy
    finally:
        proxy.heal()
        await proxy.cut()
