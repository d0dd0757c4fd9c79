"""Programs of our own: the five services and the trace sink."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from headrace.embedded.parts.process import Part, http_get, http_status


class PythonModule(Part):
    """`python -m MODULE`, ready when it answers 200 at a path on loopback."""

    start_seconds = 60.0
    # Its own drain, its telemetry's end, and some more.
    stop_seconds = 20.0

    def __init__(
        self,
        name: str,
        module: str,
        folder: Path,
        logs: Path,
        *,
        http_port: int,
        ready_path: str,
        arguments: Sequence[str] = (),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        super().__init__(folder, logs)
        self._module = module
        self._http_port = http_port
        self._ready_path = ready_path
        self._arguments = list(arguments)
        self._settings = dict(settings or {})

    def command(self) -> Sequence[str]:
        """Run the module with this interpreter."""
        return [sys.executable, "-m", self._module, *self._arguments]

    def environment(self) -> Mapping[str, str]:
        """Its settings."""
        return self._settings

    async def ready(self) -> bool:
        """It says so."""
        return await http_status(self._http_port, self._ready_path) == 200

    async def problem(self) -> str:
        """What it says of its components."""
        try:
            status, body = await http_get(self._http_port, self._ready_path)
        except OSError:
            return "it does not answer"
        return "" if status == 200 else _components(body)


def _components(body: bytes) -> str:
    try:
        components = json.loads(body)["components"]
        unready = [
            f"{name}: {state['message'] or 'not ready'}"
            for name, state in components.items()
            if not state["ready"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        unready = []
    return "; ".join(unready) or "it is not ready"
