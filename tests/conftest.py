"""Fixtures that every kind of test shares: a real broker, a real PostgreSQL, an object store."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from tests.support.brokers import new_broker

from headrace.embedded.parts import Part, free_port
from headrace.embedded.parts.postgres import Postgres

T = TypeVar("T")

# A shell without job control starts what it puts in the background with SIGINT ignored, and processes inherit
# that: tests that interrupt what they started would wait in vain.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Nothing is judged by how long it takes, on machines that may be busy.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


class Background:
    """An event loop on a thread-free runner of its own, for parts that outlive single tests."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()

    def start(self, part: Part) -> None:
        self.runner.run(part.start())

    def stop(self, part: Part) -> None:
        self.runner.run(part.stop())

    @contextmanager
    def holding(self, parts: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """Enter what is asynchronous for as long as this is entered."""
        stack = AsyncExitStack()
        entered = self.runner.run(stack.enter_async_context(parts))
        try:
            yield entered
        finally:
            self.runner.run(stack.aclose())


@pytest.fixture(scope="session")
def background() -> Iterator[Background]:
    holder = Background()
    yield holder
    holder.runner.close()


@pytest.fixture(scope="session")
def session_folder() -> Iterator[Path]:
    # Not pytest's own folder: each session that starts closes that to other users, and PostgreSQL, which
    # runs as one where tests run as root, would lose its files.
    folder = Path(tempfile.mkdtemp(prefix="headrace-tests-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def kafka_bootstrap(background: Background, session_folder: Path) -> Iterator[str]:
    """A broker."""
    broker = new_broker(session_folder)
    background.start(broker)
    yield broker.bootstrap
    background.stop(broker)


@pytest.fixture(scope="session")
def postgres_server(background: Background, session_folder: Path) -> Iterator[Postgres]:
    server = Postgres(session_folder / "postgres", session_folder / "logs", free_port(), durable=False)
    background.start(server)
    yield server
    background.stop(server)


@asynccontextmanager
async def new_database(server: Postgres) -> AsyncIterator[str]:
    """An empty database, and its DSN."""
    name = f"test_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(server.dsn)
    try:
        await connection.execute(f'CREATE DATABASE "{name}"')
        yield server.dsn.rpartition("/")[0] + f"/{name}"
        await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await connection.close()


@pytest.fixture
async def postgres_dsn(postgres_server: Postgres) -> AsyncIterator[str]:
    """A database of the test's own."""
    async with new_database(postgres_server) as dsn:
        yield dsn


@pytest.fixture
def store_uri(tmp_path: Path) -> str:
    """An empty object store in a folder."""
    return (tmp_path / "store").as_uri()
