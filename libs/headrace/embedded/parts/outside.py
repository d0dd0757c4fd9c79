"""What a stack needs and does not start: a broker or a database that runs elsewhere, and topics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from headrace.embedded.parts.process import PartFailed, any_listens
from headrace.messaging.topics import ensure_topics, load_topics

SECONDS = 15.0
RETRY_SECONDS = 0.5


class Outside:
    """Something that is only asked whether it works."""

    # It is no process of this stack.
    pid: int | None = None
    log: Path | None = None
    notice = ""

    def __init__(self, name: str, address: str, works: Callable[[], Awaitable[None]]) -> None:
        self.name = name
        self._address = address
        # Returns where it works, and raises what is wrong.
        self._works = works

    async def start(self) -> None:
        """Wait until it works. Raises PartFailed."""
        problem = ""
        try:
            async with asyncio.timeout(SECONDS):
                while problem := await self.problem():  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            hint = "Does it run, and can this machine reach it?"
            what = f"at {self._address} does not work: {problem or 'no answer'}"
            raise PartFailed(self.name, what, None, hint) from None

    async def wait(self) -> int:
        """Never returns: what happens to it is not this stack's doing."""
        await asyncio.Event().wait()
        raise AssertionError

    async def stop(self) -> None:
        """Leave it alone."""

    def kill(self) -> None:
        """Leave it alone."""

    async def problem(self) -> str:
        """What is wrong with it; empty where it works."""
        try:
            await self._works()
        except Exception as error:
            # Whatever a client library may raise: it is shown, not handled.
            return f"{type(error).__name__}: {error}"
        return ""


class Topics(Outside):
    """The platform's topics, made where they are missing."""

    def __init__(self, bootstrap: str) -> None:
        super().__init__("topics", bootstrap, self._exist)
        self._bootstrap = bootstrap

    async def start(self) -> None:
        """Make them. Raises PartFailed."""
        try:
            await ensure_topics(self._bootstrap, load_topics().values())
        except (KafkaError, OSError) as error:
            hint = "May this user create topics there? They stand in deploy/kafka/topics."
            raise PartFailed(self.name, f"cannot be made: {error!r}", None, hint) from error

    async def _exist(self) -> None:
        found = await topic_names(self._bootstrap)
        if missing := load_topics().keys() - found:
            raise LookupError(f"missing: {', '.join(sorted(missing))}")


def outside_broker(bootstrap: str) -> Outside:
    """A cluster that runs elsewhere."""

    async def works() -> None:
        await topic_names(bootstrap)

    return Outside("broker", bootstrap, works)


def outside_postgres(dsn: str) -> Outside:
    """A database that runs elsewhere."""

    async def works() -> None:
        connection = await asyncpg.connect(dsn, timeout=5)
        await connection.close()

    return Outside("postgres", without_password(dsn), works)


async def topic_names(bootstrap: str) -> set[str]:
    """The topics of a cluster. Raises KafkaError, or OSError where nothing listens."""
    await any_listens(bootstrap)
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await admin.start()
        return set(await admin.list_topics())
    finally:
        await admin.close()


def without_password(dsn: str) -> str:
    """A DSN as it may be shown."""
    parts = urlsplit(dsn)
    user = f"{parts.username}@" if parts.username else ""
    return f"{user}{parts.netloc.rpartition('@')[2]}{parts.path}"
