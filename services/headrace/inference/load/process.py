"""Starts the process that makes the load, and asks it for windows."""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import orjson
from pydantic import BaseModel

from headrace.errors import Unavailable
from headrace.inference.domain.load_windows import Window
from headrace.runtime.children import bound_to_parent

# A window's answer holds the time of each of its requests.
_LONGEST_LINE: Final = 64 << 20


class _Answer(BaseModel):
    seconds: list[float] = []
    failed: int = 0
    elapsed: float = 0.0
    error: str = ""


class LoadProcess:
    """A running one; it makes one window at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._input = process.stdin
        self._output = process.stdout

    async def send(self, line: dict[str, object]) -> None:
        """Tell it something. Raises OSError where it has died."""
        self._input.write(orjson.dumps(line) + b"\n")
        await self._input.drain()

    async def window(self, *, in_flight: int, rate: float, seconds: float) -> Window:
        """Keep load up for so long. Raises Unavailable where the server, or the process, is gone."""
        with suppress(OSError):
            await self.send({"in_flight": in_flight, "rate": rate, "seconds": seconds})
        line = await self._output.readline()
        if not line:
            raise Unavailable("LOAD_GENERATOR_DIED", "the process that makes the load died; try again")
        answer = _Answer.model_validate_json(line)
        if answer.error:
            raise Unavailable("TRITON_UNAVAILABLE", f"the measurement broke off: {answer.error}")
        return Window(answer.seconds, answer.failed, answer.elapsed)


class LoadProcesses:
    """Makes load on a server at host:port."""

    def __init__(self, address: str) -> None:
        self._address = address

    @asynccontextmanager
    async def sending(self, message: bytes) -> AsyncIterator[LoadProcess]:
        """A process that sends this ModelInferRequest again and again; ended with the block."""
        process = await asyncio.create_subprocess_exec(
            *bound_to_parent([sys.executable, "-m", "headrace.inference.load"]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
        )
        try:
            load = LoadProcess(process)
            await load.send({"address": self._address, "message": base64.b64encode(message).decode()})
            yield load
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
