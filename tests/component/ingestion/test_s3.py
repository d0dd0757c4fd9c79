"""Tables on S3: what a local folder does by renaming, S3 does by conditional puts."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import deltalake
import pyarrow as pa
import pytest
from tests.component.ingestion.test_delta_tables import DATASET, NAMES, append_of
from tests.support.faulty_http import Fault, FaultyHttp, faulty_http
from tests.support.ingestion import Headers, Ingestion, Process, ingestion_on
from tests.support.s3 import BUCKET, s3_server, use_s3
from tests.support.waiting import eventually

from headrace.ingestion.domain.content_hash import combine, hash_rows, to_hex
from headrace.ingestion.domain.dataset import SourcePartition
from headrace.ingestion.storage.delta import DeltaTables
from headrace.ingestion.storage.maintenance import DeltaMaintenance
from headrace.objects.store import delta_storage_options
from headrace.runtime.clock import utc_now

COLUMNS = ["id", "radius", "grade", "malignant"]


@pytest.fixture(scope="module")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


@pytest.fixture
def root(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    use_s3(monkeypatch, s3_endpoint)
    return f"s3://{BUCKET}/tests/{uuid.uuid4()}"


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
    def tables() -> DeltaTables:
        return DeltaTables(lambda name: f"{root}/{name}", delta_storage_options())

    tables().ensure(DATASET)

    def write(partition: int) -> int:
        own, source = tables(), SourcePartition("c1", "t", partition)
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
    commits = tables().state_since(DATASET, -1).commits
    assert combine(*(commit.content_hash for commit in commits)) == hash_rows(rows, NAMES)
    # Nobody reads or writes any more: what was merged goes, and the rows stay.
    assert maintenance_of(root).remove_unneeded(DATASET, [newest.version()]) > 0
    assert newest.to_pyarrow_table().num_rows == 100


@pytest.fixture
async def proxy(s3_endpoint: str) -> AsyncIterator[FaultyHttp]:
    port = urlsplit(s3_endpoint).port
    assert port is not None
    async with faulty_http(port) as opened:
        yield opened


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
