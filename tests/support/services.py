"""Services as processes of their own, for tests that call, kill and restart them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import asyncpg
from tests.support.waiting import eventually

from headrace.embedded.parts.process import Part, PartFailed, free_port, http_status
from headrace.rpc.client import channel


class ServiceProcess(Part):
    """`python -m headrace.<service>` on ports of its own."""

    start_seconds = 40.0

    def __init__(self, service: str, folder: Path, settings: Mapping[str, str]) -> None:
        self.name = service
        super().__init__(folder, folder)
        self.grpc_port = free_port()
        self.http_port = free_port()
        self.settings = dict(settings)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def command(self) -> list[str]:
        return [sys.executable, "-W", "error::RuntimeWarning", "-m", f"headrace.{self.name}"]

    def environment(self) -> dict[str, str]:
        prefix = f"HEADRACE_{self.name.upper()}_"
        return {
            f"{prefix}GRPC_ADDRESS": self.target,
            f"{prefix}HTTP_ADDRESS": f"127.0.0.1:{self.http_port}",
            **self.settings,
        }

    async def start(self) -> None:
        """Start it; a failure shows what the service said."""
        try:
            await super().start()
        except PartFailed as error:
            raise AssertionError(error.report()) from error
        await until_connected(self.target)

    async def ready(self) -> bool:
        return await http_status(self.http_port, "/readyz") == 200

    async def killed(self, deadline: float = 60.0) -> None:
        """Wait until it has killed itself at its fault point."""
        async with asyncio.timeout(deadline):
            assert await self.wait() == -signal.SIGKILL, self.log.read_text()


def platform(kafka_bootstrap: str, postgres_dsn: str, store_uri: str) -> dict[str, str]:
    """What every service has to know."""
    kafka = os.environ.get("HEADRACE_TEST_BROKER") == "kafka"
    return {
        "HEADRACE_KAFKA_BOOTSTRAP": kafka_bootstrap,
        "HEADRACE_KAFKA_IDEMPOTENCE": str(kafka).lower(),
        # Short, for a killed member's successor waits for it; the embedded broker lets each joining group
        # wait for half of it.
        "HEADRACE_KAFKA_SESSION_SECONDS": "2",
        "HEADRACE_POSTGRES_DSN": postgres_dsn,
        "HEADRACE_STORE_URI": store_uri,
    }


async def until_connected(target: str) -> None:
    """Wait until calls get through to a service that has started.

    All channels of a process to one address share what they know of it: one that was refused while the
    service was away lets calls of a new one fail for up to two seconds more.
    """
    async with asyncio.timeout(30), channel(target) as opened:
        await opened.channel_ready()


async def until_outbox_empty(postgres_dsn: str, schema: str) -> None:
    """Wait until a service has published everything that it has to tell."""
    connection = await asyncpg.connect(postgres_dsn)
    try:

        async def left() -> int:
            count: int = await connection.fetchval(f'SELECT count(*) FROM "{schema}".outbox')
            return count

        await eventually(left, lambda count: count == 0)
    finally:
        await connection.close()
