"""Tables on S3: what a local folder does by renaming, S3 does by conditional puts.

Of a request that breaks off, the store has nothing. Of an answer that does, the client does not know what it
was: a commit may stand, and must be neither given up nor repeated.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import deltalake
import pyarrow as pa
import pytest
from deltalake.exceptions import DeltaError
from tests.component.ingestion.test_delta_tables import DATASET, LEFT, NAMES, append_of
from tests.support.faulty_http import Fault, FaultyHttp, Requests
from tests.support.ingestion import Headers, Ingestion, Process, ingestion_on
from tests.support.s3 import BUCKET, rows_by_the_log, use_s3
from tests.support.waiting import eventually

from headrace.ingestion.domain.content_hash import combine, hash_rows, to_hex
from headrace.ingestion.domain.dataset import SourcePartition
from headrace.ingestion.storage.delta import DeltaTables
from headrace.ingestion.storage.maintenance import DeltaMaintenance
from headrace.objects.store import delta_storage_options
from headrace.runtime.clock import utc_now

T = TypeVar("T")

COLUMNS = ["id", "radius", "grade", "malignant"]

DATA_FILE: Final = r"\.parquet"
COMMIT: Final = r"/_delta_log/\d{20}\.json"
BREAKING_OFF: Final = [
    pytest.param(Fault.HALF_SENT, "PUT", DATA_FILE, id="data-file-sent"),
    pytest.param(Fault.HALF_SENT, "PUT", COMMIT, id="commit-sent"),
    pytest.param(Fault.HALF_ANSWERED, "PUT", DATA_FILE, id="data-file-answered"),
    pytest.param(Fault.HALF_ANSWERED, "PUT", COMMIT, id="commit-answered"),
    pytest.param(Fault.HALF_ANSWERED, "GET", DATA_FILE, id="data-file-read"),
    pytest.param(Fault.HALF_ANSWERED, "GET", COMMIT, id="commit-read"),
]
# How often a request is sent before it is given up.
ATTEMPTS: Final = 4


@pytest.fixture
def root(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    use_s3(monkeypatch, s3_endpoint)
    return f"s3://{BUCKET}/tests/{uuid.uuid4()}"


def tables_below(root: str) -> DeltaTables:
    return DeltaTables(lambda name: f"{root}/{name}", delta_storage_options())


def maintenance_of(root: str) -> DeltaMaintenance:
    return DeltaMaintenance(
        lambda name: f"{root}/{name}",
        delta_storage_options(),
        clock=utc_now,
        target_bytes=1 << 20,
        min_files=4,
        retention_hours=0,
    )


def test_writers_that_race_lose_and_double_nothing_while_files_are_merged(root: str) -> None:
    tables_below(root).ensure(DATASET)

    def write(partition: int) -> int:
        own, source = tables_below(root), SourcePartition("c1", "t", partition)
        return sum(own.append(append_of((source, range(n, n + 5)))) for n in range(0, 50, 5))

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write, partition) for partition in range(2)]
        while not all(writer.done() for writer in writers):
            maintenance_of(root).merge(DATASET)
        assert [writer.result() for writer in writers] == [50, 50]
    maintenance_of(root).merge(DATASET)

    newest = deltalake.DeltaTable(f"{root}/samples", storage_options=delta_storage_options())
    rows = pa.table(newest.to_pyarrow_table())
    pairs = zip(rows.column("_partition").to_pylist(), rows.column("_offset").to_pylist(), strict=True)
    assert sorted(pairs) == [(partition, n) for partition in range(2) for n in range(50)]
    commits = tables_below(root).state_since(DATASET, -1).commits
    assert combine(*(commit.content_hash for commit in commits)) == hash_rows(rows, NAMES)
    # Nobody reads or writes any more: what was merged goes, and the rows stay.
    assert maintenance_of(root).remove_unneeded(DATASET, [newest.version()]) > 0
    assert newest.to_pyarrow_table().num_rows == 100


@pytest.fixture
def root_by_proxy(root: str, proxy: FaultyHttp, monkeypatch: pytest.MonkeyPatch) -> str:
    """This process reaches S3 by the proxy only.

    The proxy runs in it, too: code that lets no thread go on until S3 has answered would wait for itself.
    """
    use_s3(monkeypatch, f"http://127.0.0.1:{proxy.port}")
    return root


def tried_again(work: Callable[[], T]) -> T:
    """What fails once is done again, as the service does it."""
    try:
        return work()
    except (DeltaError, OSError):
        return work()


def assert_each_row_is_there_once(endpoint: str, root: str, count: int) -> None:
    rows = rows_by_the_log(endpoint, f"{root}/{DATASET.name}")
    assert sorted(rows.column("_offset").to_pylist()) == list(range(count))
    # Versions are cut from what the commits say.
    commits = tables_below(root).state_since(DATASET, -1).commits
    assert sum(commit.rows for commit in commits) == count
    assert combine(*(commit.content_hash for commit in commits)) == hash_rows(rows, NAMES)


@pytest.mark.parametrize("fault", [Fault.HALF_SENT, Fault.HALF_ANSWERED])
async def test_rows_are_stored_once_whichever_request_breaks_off(
    root_by_proxy: str, s3_endpoint: str, proxy: FaultyHttp, fault: Fault
) -> None:
    """The first one that an append makes, then the second, and so on, each in a table of its own."""
    for number in itertools.count(1):
        root = f"{root_by_proxy}/{number}"
        tables = tables_below(root)
        await asyncio.to_thread(tables.ensure, DATASET)
        await proxy.fail(fault, Requests(number=number))
        await asyncio.to_thread(tried_again, partial(tables.append, append_of((LEFT, range(5)))))
        broke_off = proxy.asked
        proxy.heal()
        await asyncio.to_thread(assert_each_row_is_there_once, s3_endpoint, root, 5)
        if not broke_off:
            break
    assert number > ATTEMPTS


@pytest.mark.parametrize("fault", [Fault.HALF_SENT, Fault.HALF_ANSWERED])
async def test_a_table_is_made_although_its_first_commit_breaks_off(
    root_by_proxy: str, s3_endpoint: str, proxy: FaultyHttp, fault: Fault
) -> None:
    tables = tables_below(root_by_proxy)
    await proxy.fail(fault, Requests("PUT", COMMIT, 1))
    await asyncio.to_thread(tables.append, append_of((LEFT, range(5))))
    assert proxy.asked == 1
    proxy.heal()
    await asyncio.to_thread(assert_each_row_is_there_once, s3_endpoint, root_by_proxy, 5)


@pytest.mark.parametrize("number", [1, None], ids=["once", "always"])
@pytest.mark.parametrize(("fault", "method", "path"), BREAKING_OFF)
async def test_merging_changes_no_row_whatever_breaks_off(
    root_by_proxy: str,
    s3_endpoint: str,
    proxy: FaultyHttp,
    fault: Fault,
    method: str,
    path: str,
    number: int | None,
) -> None:
    tables = tables_below(root_by_proxy)
    for end in range(1, 5):
        await asyncio.to_thread(tables.append, append_of((LEFT, range(end))))
    maintenance = maintenance_of(root_by_proxy)

    await proxy.fail(fault, Requests(method, path, number))
    if number is None:
        with pytest.raises((DeltaError, OSError)):
            await asyncio.to_thread(maintenance.merge, DATASET)
    else:
        await asyncio.to_thread(tried_again, partial(maintenance.merge, DATASET))
    assert proxy.asked
    proxy.heal()
    await asyncio.to_thread(assert_each_row_is_there_once, s3_endpoint, root_by_proxy, 4)
    # It is done now, if it was not.
    await asyncio.to_thread(maintenance.merge, DATASET)
    await asyncio.to_thread(assert_each_row_is_there_once, s3_endpoint, root_by_proxy, 4)
    newest = await asyncio.to_thread(maintenance.merge, DATASET)
    assert (newest.files, newest.merged) == (1, 0)


@pytest.fixture
async def on_s3(
    kafka_bootstrap: str, postgres_dsn: str, root: str, tmp_path: Path
) -> AsyncIterator[Ingestion]:
    async with ingestion_on(kafka_bootstrap, postgres_dsn, root, tmp_path) as environment:
        yield environment


def record(ingestion: Ingestion, number: int) -> tuple[bytes, bytes, Headers]:
    row = {"id": f"p{number}", "radius": number / 2, "grade": 1, "malignant": 0}
    return b"p", json.dumps(row).encode(), ingestion.headers(f"{ingestion.dataset}-{number:03}")


async def assert_each_event_is_one_row_of_the_version(
    ingestion: Ingestion, process: Process, count: int
) -> None:
    versions = await eventually(
        lambda: ingestion.versions(process),
        lambda versions: bool(versions) and versions[-1].row_count >= count,
    )
    rows = pa.table(ingestion.table(versions[-1].table_version).to_pyarrow_table())
    expected = [f"{ingestion.dataset}-{number:03}" for number in range(count)]
    assert sorted(rows.column("_event_id").to_pylist()) == expected
    assert to_hex(hash_rows(rows, COLUMNS)) == versions[-1].content_hash


@pytest.mark.broker
@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.SILENCE, Fault.UNHEARD])
async def test_while_s3_fails_nothing_is_lost_and_nothing_doubled(
    on_s3: Ingestion, proxy: FaultyHttp, fault: Fault
) -> None:
    process = await on_s3.start_ready(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{proxy.port}",
        HEADRACE_INGESTION_RETRY_SECONDS="0.5",
        HEADRACE_INGESTION_MAINTENANCE_SECONDS="0.2",
        HEADRACE_INGESTION_MERGE_MIN_FILES="2",
    )
    await on_s3.apply(process, rows=5, seconds=1)
    await on_s3.publish([record(on_s3, number) for number in range(5)])
    await eventually(on_s3.rows, lambda rows: len(rows) == 5)

    await proxy.fail(fault)
    await on_s3.publish([record(on_s3, number) for number in range(5, 15)])

    async def asked() -> int:
        return proxy.asked

    # A request that is not answered is given up after 15 s.
    await eventually(asked, lambda count: count >= 3, seconds=90)
    proxy.heal()
    await eventually(process.is_ready, bool)
    await assert_each_event_is_one_row_of_the_version(on_s3, process, 15)
    assert await process.stop() == 0


@pytest.mark.broker
@pytest.mark.parametrize(("fault", "method", "path"), BREAKING_OFF)
async def test_whatever_breaks_off_nothing_is_lost_and_nothing_doubled(
    on_s3: Ingestion, s3_endpoint: str, proxy: FaultyHttp, fault: Fault, method: str, path: str
) -> None:
    process = await on_s3.start_ready(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{proxy.port}",
        HEADRACE_INGESTION_RETRY_SECONDS="0.5",
        HEADRACE_INGESTION_SWEEP_SECONDS="0.5",
    )
    await on_s3.apply(process, rows=5, seconds=1)
    await on_s3.publish([record(on_s3, number) for number in range(5)])
    await eventually(on_s3.rows, lambda rows: len(rows) == 5)

    await proxy.fail(fault, Requests(method, path))
    await on_s3.publish([record(on_s3, number) for number in range(5, 15)])

    async def given_up() -> bool:
        # A commit that stands is not sent so often: it is refused for being there.
        failures = await process.metric("headrace_ingestion_batch_failures_total")
        return failures > 0 or proxy.asked >= ATTEMPTS

    await eventually(given_up, bool)
    proxy.heal()
    await eventually(process.is_ready, bool)
    await assert_each_event_is_one_row_of_the_version(on_s3, process, 15)
    table = f"{on_s3.store_uri}/datasets/{on_s3.dataset}"
    rows = await asyncio.to_thread(rows_by_the_log, s3_endpoint, table)
    assert rows.num_rows == 15
    assert await process.stop() == 0


@pytest.mark.broker
async def test_readiness_says_that_s3_is_at_fault(on_s3: Ingestion, proxy: FaultyHttp) -> None:
    process = await on_s3.start_ready(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{proxy.port}", HEADRACE_INGESTION_RETRY_SECONDS="0.5"
    )
    await on_s3.apply(process, rows=5, seconds=1)
    await proxy.fail(Fault.ERROR)
    await on_s3.publish([record(on_s3, number) for number in range(5)])
    why = await eventually(process.why_unready, bool, seconds=120)
    assert "500 Internal Server Error" in why
    proxy.heal()
    await eventually(process.is_ready, bool)
    await assert_each_event_is_one_row_of_the_version(on_s3, process, 5)
    assert await process.stop() == 0
