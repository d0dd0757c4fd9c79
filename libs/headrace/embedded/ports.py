"""A stack's ports: the usual ones where they are free, and the same at each start."""

from __future__ import annotations

import json
import random
import socket
from pathlib import Path
from typing import Final, Protocol

from headrace.embedded.parts.process import PORTS, claim_port

PORTS_FILE: Final = "ports.json"


class PortSource(Protocol):
    """Gives a part its port."""

    def take(self, name: str, usual: int) -> int:
        """The port of `name`. Raises OSError where there is none."""


class Ports:
    """Hands out ports, and keeps other stacks on this machine from choosing them before they are bound."""

    def __init__(self, file: Path, host: str) -> None:
        self._file = file
        self._host = host
        self._remembered = _read(file)
        self._taken: dict[str, int] = {}
        self._claims: list[socket.socket] = []

    def take(self, name: str, usual: int) -> int:
        """The port of `name`: that of the last start, else the usual one, else any that is free."""
        preferred = [port for port in (self._remembered.get(name), usual) if port is not None]
        for port in (*preferred, *random.sample(PORTS, 500)):
            claim = claim_port(port, self._host)
            if claim is not None:
                self._claims.append(claim)
                self._taken[name] = port
                return port
        raise OSError(f"no free port for {name} on {self._host}")

    def remember(self) -> None:
        """Write down what was taken, for the next start."""
        self._file.write_text(json.dumps({**self._remembered, **self._taken}, indent=2) + "\n")

    def release(self) -> None:
        """Let other stacks have the ports."""
        while self._claims:
            self._claims.pop().close()


class RememberedPorts:
    """The ports of a stack that runs, for somebody else who asks its parts."""

    def __init__(self, file: Path) -> None:
        self._ports = _read(file)

    def take(self, name: str, usual: int) -> int:
        """The port that the stack took."""
        return self._ports.get(name, usual)


def _read(file: Path) -> dict[str, int]:
    try:
        return {str(name): int(port) for name, port in json.loads(file.read_text()).items()}
    except (OSError, ValueError, AttributeError):
        # Only a preference is lost.
        return {}
