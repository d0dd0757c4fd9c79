from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from tests.support.ingestion import Headers, Ingestion, ingestion_on
from tests.support.waiting import eventually

from headrace.ingestion.domain.content_hash import hash_rows, to_hex

pytestmark = pytest.mark.broker

SIZE_BYTES = 4 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system takes root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "tmpfs", folder], check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
async def ingestion(
    kafka_bootstrap: str, postgres_dsn: str, small_disk: Path, tmp_path: Path
) -> AsyncIterator[Ingestion]:
    store_uri = (small_disk / "store").as_uri()
    async with ingestion_on(kafka_bootstrap, postgres_dsn, store_uri, tmp_path) as environment:
        yield environment


def record(ingestion: Ingestion, number: int) -> tuple[bytes, bytes, Headers]:
    row = {"id": f"p{number}", "radius": number / 2, "grade": 1, "malignant": 0}
    return b"p", json.dumps(row).encode(), ingestion.headers(f"{ingestion.dataset}-{number:04}")


def fill(file: Path) -> None:
    """Take every byte that is left."""
    with file.open("wb", buffering=0) as stream:
        for size in (64 * 1024, 4096, 1):
            try:
                while True:
                    stream.write(bytes(size))
            except OSError:
                pass


async def test_a_full_disk_loses_nothing_is_said_and_is_over_when_there_is_space(
    ingestion: Ingestion, small_disk: Path
) -> None:
    process = await ingestion.start_ready(
        HEADRACE_INGESTION_RETRY_SECONDS="0.5",
        HEADRACE_INGESTION_MAINTENANCE_SECONDS="0.2",
        HEADRACE_INGESTION_MERGE_MIN_FILES="2",
    )
    await ingestion.apply(process, rows=5, seconds=1)
    await ingestion.publish([record(ingestion, number) for number in range(5)])
    await eventually(ingestion.rows, lambda rows: len(rows) == 5)

    ballast = small_disk / "ballast"
    fill(ballast)
    await ingestion.publish([record(ingestion, number) for number in range(5, 500)])
    why = await eventually(process.why_unready, bool)
    assert "No space left on device" in why

    ballast.unlink()
    await eventually(process.is_ready, bool)
    versions = await eventually(
        lambda: ingestion.versions(process),
        lambda versions: bool(versions) and versions[-1].row_count >= 500,
    )
    rows = pa.table(ingestion.table(versions[-1].table_version).to_pyarrow_table())
    expected = [f"{ingestion.dataset}-{number:04}" for number in range(500)]
    assert sorted(rows.column("_event_id").to_pylist()) == expected
    assert to_hex(hash_rows(rows, ["id", "radius", "grade", "malignant"])) == versions[-1].content_hash
    assert await process.stop() == 0
