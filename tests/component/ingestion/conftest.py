from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.conftest import Background, new_database
from tests.support.faulty_http import FaultyHttp, faulty_http
from tests.support.ingestion import Ingestion, Running, ingestion_on
from tests.support.s3 import s3_server
from tests.support.schema_registry import NEEDED, Apicurio, Registry

from headrace.embedded.parts.postgres import Postgres

FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the services of a test that fails have logged."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
        for used in item.funcargs.values():
            environment = used.ingestion if isinstance(used, Running) else used
            if isinstance(environment, Ingestion):
                report.sections += [(str(one.log), one.log_end()) for one in environment.processes]
    return report


@pytest.fixture
async def ingestion(
    kafka_bootstrap: str, postgres_dsn: str, store_uri: str, tmp_path: Path
) -> AsyncIterator[Ingestion]:
    """An environment of the test's own: to set processes, stop, kill and count what is in them."""
    async with ingestion_on(kafka_bootstrap, postgres_dsn, store_uri, tmp_path) as environment:
        yield environment


@asynccontextmanager
async def running(kafka_bootstrap: str, server: Postgres, folder: Path) -> AsyncIterator[Running]:
    """A service with a database and a store of its own."""
    async with (
        new_database(server) as dsn,
        ingestion_on(kafka_bootstrap, dsn, (folder / "store").as_uri(), folder) as environment,
    ):
        yield Running(environment, await environment.start_ready())


class SharedService:
    """A service that starts when a test asks for it, and that no test finds as a failed one left it."""

    def __init__(self, background: Background, kafka_bootstrap: str, server: Postgres, folder: Path) -> None:
        self._background = background
        self._kafka_bootstrap = kafka_bootstrap
        self._server = server
        self._folder = folder
        self._running: Running | None = None
        self._parts = ExitStack()

    def for_a_test(self) -> Running:
        """The service, with a dataset of the test's own."""
        if self._running is None:
            parts = running(self._kafka_bootstrap, self._server, self._folder)
            self._running = self._parts.enter_context(self._background.holding(parts))
        ingestion, process = self._running
        try:
            return Running(self._background.runner.run(ingestion.for_another_test(process)), process)
        except Exception:
            self.discard()
            raise

    def stop(self) -> None:
        """Stop it in peace; the next test gets another one."""
        code = 0 if self._running is None else self._background.runner.run(self._running.process.stop())
        self.discard()
        assert code == 0

    def discard(self) -> None:
        """End it, whatever has become of it; the next test gets another one."""
        self._running = None
        self._parts.close()


@pytest.fixture(scope="module")
def shared_service(
    background: Background,
    kafka_bootstrap: str,
    postgres_server: Postgres,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[SharedService]:
    folder = tmp_path_factory.mktemp("ingestion")
    service = SharedService(background, kafka_bootstrap, postgres_server, folder)
    yield service
    service.stop()


@pytest.fixture
def shared_ingestion(request: pytest.FixtureRequest, shared_service: SharedService) -> Iterator[Running]:
    """A running service that a module's tests share, each with its own dataset.

    For tests that need no settings, harm nothing and ask for nothing but what is their dataset's.
    """
    yield shared_service.for_a_test()
    if request.node.stash.get(FAILED, False):
        shared_service.discard()


@pytest.fixture(scope="module")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


@pytest.fixture
async def proxy(s3_endpoint: str) -> AsyncIterator[FaultyHttp]:
    """Stands in front of S3."""
    port = urlsplit(s3_endpoint).port
    assert port is not None
    async with faulty_http(port) as opened:
        yield opened


@pytest.fixture(scope="module")
def registry(background: Background, session_folder: Path) -> Iterator[Registry]:
    if given := os.environ.get("HEADRACE_TEST_SCHEMA_REGISTRY"):
        yield Registry(given)
        return
    if missing := [program for program in NEEDED if shutil.which(program) is None]:
        pytest.skip(f"the schema registry needs {' and '.join(missing)}")
    part = Apicurio(session_folder / "schema-registry", session_folder / "logs")
    background.start(part)
    yield Registry(part.url)
    background.stop(part)
