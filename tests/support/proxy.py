"""A TCP proxy that can be cut, to take a server away from one client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Proxy:
    """Forwards connections to 127.0.0.1:`upstream`, from the address `source`, while it is open."""

    upstream: int
    port: int = 0
    source: str = "127.0.0.1"
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _flowing: asyncio.Event = field(default_factory=asyncio.Event)

    async def open(self) -> None:
        self._flowing.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def freeze(self) -> None:
        """Forward nothing any more, and keep connections: as where the other side vanished without a word."""
        self._flowing.clear()

    async def cut(self) -> None:
        """Refuse new connections and break those that there are."""
        assert self._server is not None
        self._server.close()
        self._flowing.set()
        for writer in tuple(self._writers):
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        upstream_reader, upstream_writer = await asyncio.open_connection(
            "127.0.0.1", self.upstream, local_addr=(self.source, 0)
        )
        self._writers |= {writer, upstream_writer}
        try:
            if self._server is None or not self._server.is_serving():
                # It was cut while this one came.
                writer.transport.abort()
                upstream_writer.transport.abort()
            await asyncio.gather(self._pump(reader, upstream_writer), self._pump(upstream_reader, writer))
        finally:
            self._writers -= {writer, upstream_writer}
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def proxied(dsn: str) -> AsyncIterator[tuple[Proxy, str]]:
    """An open proxy in front of the server that a DSN names, and the DSN that leads through it."""
    port = urlsplit(dsn).port
    assert port is not None
    proxy = Proxy(port)
    await proxy.open()
    try:
        yield proxy, dsn.replace(f":{port}/", f":{proxy.port}/")
    finally:
        await proxy.cut()
