"""Numbered migrations, each applied once, whoever starts first."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from importlib import resources

from headrace.postgres.pool import Connection, Pool

logger = logging.getLogger(__name__)

_FILE = re.compile(r"^\d{4}_[a-z0-9_]+\.sql$")
_LIBRARY = "headrace.postgres.tables"
# For the lock, which another instance holds while it migrates, and for each migration.
TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of SQL and its checksum."""

    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, hexadecimal."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


class MigrationError(Exception):
    """An applied migration's file has changed, or is gone: the database is not what the code expects."""


async def migrate(pool: Pool, package: str) -> list[str]:
    """Apply the library's migrations (outbox, inbox) and then those of `package`; return the new ones' names.

    Takes an advisory lock, so that several instances can start at once. Each migration runs in a
    transaction of its own together with its record. Raises MigrationError.
    """
    applied: list[str] = []
    async with pool.acquire() as connection:
        schema = await connection.fetchval("SELECT current_schema()")
        await connection.execute(
            "SELECT pg_advisory_lock(hashtext($1))", f"headrace.migrate.{schema}", timeout=TIMEOUT_SECONDS
        )
        try:
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_migrations ("
                " name text PRIMARY KEY, checksum text NOT NULL,"
                " applied_at timestamptz NOT NULL DEFAULT now())"
            )
            for owner in (_LIBRARY, package):
                applied += await _apply_missing(connection, owner)
        finally:
            await connection.execute("SELECT pg_advisory_unlock(hashtext($1))", f"headrace.migrate.{schema}")
    for name in applied:
        logger.info("applied migration %s in schema %s", name, schema)
    return applied


def read_migrations(package: str) -> list[Migration]:
    """The migrations of a package, in order. Raises ValueError for a file that is not named like one."""
    found = []
    for file in resources.files(package).joinpath("migrations").iterdir():
        if not file.name.endswith(".sql"):
            continue
        if not _FILE.match(file.name):
            raise ValueError(f"{package}/migrations/{file.name} is not named NNNN_what_it_does.sql")
        found.append(Migration(_owner(package) + file.name, file.read_text()))
    found.sort(key=lambda migration: migration.name)
    numbers = [migration.name.rpartition("/")[2][:4] for migration in found]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{package}/migrations has two files of one number")
    return found


def _owner(package: str) -> str:
    """What its migrations' names begin with: those of headrace.scheduling.storage are the service's."""
    return (package.rpartition(".")[0] or package) + "/"


async def _apply_missing(connection: Connection, package: str) -> list[str]:
    known = {
        row["name"]: row["checksum"]
        for row in await connection.fetch("SELECT name, checksum FROM schema_migrations")
    }
    migrations = read_migrations(package)
    gone = {name for name in known if name.startswith(_owner(package))} - {found.name for found in migrations}
    if gone:
        raise MigrationError(
            f"the database has {', '.join(sorted(gone))}, which this version does not know;"
            " start the version that applied it, or a newer one"
        )
    applied = []
    for migration in migrations:
        if migration.name in known:
            if known[migration.name] != migration.checksum:
                raise MigrationError(f"{migration.name} was changed after it was applied; add a new one")
            continue
        async with connection.transaction():
            await connection.execute(migration.sql, timeout=TIMEOUT_SECONDS)
            await connection.execute(
                "INSERT INTO schema_migrations (name, checksum) VALUES ($1, $2)",
                migration.name,
                migration.checksum,
            )
        applied.append(migration.name)
    return applied
