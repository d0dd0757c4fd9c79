"""A stack's ports: the usual ones where they are free, and the same at each start."""

from __future__ import annotations

import json
import random
import socket
from pathlib import Path
from typing import Final, Protocol

from headrace.embedded.parts.process import PORTS, is_free

PORTS_FILE: Final = "ports.json"


class PortSource(Protocol):
    """Gives a part its port."""

    def take(self, name: str, usual: int) -> int:
        """The port of `name`. Raises OSError where there is none."""


class Ports:
    """Hands out ports, and keeps other stacks on this machine from choosing them before they are bound.

    A claim is an abstract Unix socket with the port in its name: like the port it belongs to the network
    namespace, two processes cannot hold it at once, and it is gone when its process is.
    """

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
            if self._claim(port):
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

    def _claim(self, port: int) -> bool:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            claim.bind(f"\0headrace-port-{port}")
        except OSError:
            claim.close()
            return False
        # Loopback too: whoever listens on all addresses has it, and some parts stay there.
        if not (is_free("127.0.0.1", port) and is_free(self._host, port)):
            claim.close()
            return False
        self._claims.append(claim)
        return True


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
