"""A proxy in front of an HTTP server that fails in the ways that servers fail."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tests.support.proxy import Proxy


class Fault(enum.Enum):
    """What the proxy does with each request."""

    NONE = "none"
    ERROR = "every answer is 500"
    SILENCE = "no request is answered"
    UNHEARD = "requests are carried out, and their answers are lost"


@dataclass
class FaultyHttp(Proxy):
    """`asked` counts the requests, or connections, that met the fault."""

    fault: Fault = Fault.NONE
    asked: int = 0
    _healed: asyncio.Event = field(default_factory=asyncio.Event)

    async def fail(self, fault: Fault) -> None:
        """From now on; connections that there are break, for they carry requests past it."""
        self.fault, self.asked = fault, 0
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
        self.asked += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if self.fault is Fault.ERROR:
                await _request(reader)
                writer.write(
                    b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                )
                await writer.drain()
            elif self.fault is Fault.SILENCE:
                await self._healed.wait()
            else:
                await self._carry_out(await _request(reader))
        writer.close()

    async def _carry_out(self, request: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        writer.write(request)
        # The answer's first bytes come when the request has had its effect.
        await reader.read(1)
        writer.transport.abort()


async def _request(reader: asyncio.StreamReader) -> bytes:
    """One request, whole."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return head + await reader.readexactly(int(line.partition(b":")[2]))
    return head


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
