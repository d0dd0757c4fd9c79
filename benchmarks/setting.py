"""What benchmarks share: a service as a process, and the machine that figures were seen on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from headrace.embedded.parts import Part, free_port
from headrace.embedded.parts.process import http_status


class Service(Part):
    """A service on ports of its own."""

    def __init__(self, name: str, folder: Path, logs: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        super().__init__(folder, logs)
        self.grpc_port, self.http_port = free_port(), free_port()
        self._environment = dict(environment)

    def command(self) -> list[str]:
        """Run it."""
        return [sys.executable, "-m", f"headrace.{self.name}"]

    def environment(self) -> dict[str, str]:
        """Its settings."""
        return {
            f"HEADRACE_{self.name.upper()}_GRPC_ADDRESS": f"127.0.0.1:{self.grpc_port}",
            f"HEADRACE_{self.name.upper()}_HTTP_ADDRESS": f"127.0.0.1:{self.http_port}",
            **self._environment,
        }

    async def ready(self) -> bool:
        """It says so."""
        return await http_status(self.http_port, "/readyz") == 200


def machine(*packages: str) -> dict[str, str]:
    """Where, when and with which packages something was measured."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": f"{model}, {os.cpu_count()} cores",
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in ("headrace", *packages)},
    }
