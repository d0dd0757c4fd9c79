"""Claim checks on real parts: payloads beside the topic become rows or rejected events as those in it do."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from tests.component.ingestion.test_erasure import erased, request, subject
from tests.support.claims import claim_headers
from tests.support.faulty_http import Fault, FaultyHttp
from tests.support.ingestion import Headers, Ingestion, Process
from tests.support.s3 import BUCKET, use_s3
from tests.support.waiting import eventually

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.api.ingestion.v1 import versions_pb2
from headrace.client import HeadraceClient, Targets
from headrace.errors import FailedPrecondition, InvalidArgument
from headrace.objects import ObjectStore

pytestmark = pytest.mark.broker

Record = tuple[bytes, bytes, Headers]


def row(number: int, **changes: object) -> bytes:
    return json.dumps(
        {"id": f"p{number}", "radius": number / 2, "grade": 1, "malignant": 0, **changes}
    ).encode()


def event_id(ingestion: Ingestion, number: int) -> str:
    return f"{ingestion.dataset}-{number:03}"


def inline(ingestion: Ingestion, number: int) -> Record:
    return b"p", row(number), ingestion.headers(event_id(ingestion, number))


def claim(ingestion: Ingestion, number: int, payload: bytes, path: str, **changes: str) -> Record:
    """The event that claims a payload from below the store."""
    headers = ingestion.headers(event_id(ingestion, number))
    return b"p", b"", [*headers, *claim_headers(payload, f"{ingestion.store_uri}/{path}", **changes)]


async def put(ingestion: Ingestion, path: str, payload: bytes) -> None:
    await ObjectStore.from_uri(ingestion.store_uri).put(path, payload)


async def claimed(ingestion: Ingestion, number: int) -> Record:
    """The event, whose payload is in the store."""
    path = f"claims/{ingestion.dataset}/{number}"
    await put(ingestion, path, row(number))
    return claim(ingestion, number, row(number), path)


async def replayed(ingestion: Ingestion, process: Process) -> versions_pb2.ReplayVersionResponse:
    name = versions_pb2.VersionName(number=1)
    asked = versions_pb2.ReplayVersionRequest(dataset=ingestion.dataset, version=name)
    async with ingestion.version_stub(process) as stub:
        return [answer async for answer in stub.ReplayVersion(asked)][-1]


async def test_claimed_payloads_become_rows_and_what_is_wrong_with_others_is_told(
    ingestion: Ingestion,
) -> None:
    process = await ingestion.start_ready()
    await ingestion.apply(process)
    path = f"claims/{ingestion.dataset}/other"
    await put(ingestion, path, row(9, radius=-1))
    elsewhere = f"datasets/{ingestion.dataset}/_delta_log/00000000000000000000.json"
    await ingestion.publish(
        [
            await claimed(ingestion, 0),
            inline(ingestion, 1),
            claim(ingestion, 2, row(2), f"claims/{ingestion.dataset}/none"),
            claim(ingestion, 3, row(3), path, datasize=str(len(row(9, radius=-1)))),
            claim(ingestion, 4, row(9, radius=-1), path),
            claim(ingestion, 5, row(5), elsewhere),
            await claimed(ingestion, 6),
        ]
    )
    rows = await eventually(ingestion.rows, lambda rows: len(rows) == 3)
    assert [(r["id"], r["radius"]) for r in rows] == [("p0", 0), ("p1", 0.5), ("p6", 3)]
    found = await eventually(lambda: ingestion.rejected(process), lambda found: len(found) == 4)
    assert {entry.event_id: (entry.reason, entry.field, entry.rule) for entry in found} == {
        event_id(ingestion, 2): ("CLAIM_MISSING", "ce_dataref", "exists"),
        event_id(ingestion, 3): ("CLAIM_MISMATCH", "ce_datahash", "sha256"),
        event_id(ingestion, 4): ("SCHEMA_VIOLATION", "radius", "min"),
        event_id(ingestion, 5): ("CLAIM_FOREIGN", "ce_dataref", "location"),
    }
    # The entry is the event as it came, and its replay claims the payload again, which is there by now.
    [missing] = [entry for entry in found if entry.reason == "CLAIM_MISSING"]
    assert missing.payload == b""
    await put(ingestion, f"claims/{ingestion.dataset}/none", row(2))
    async with ingestion.stub(process) as stub:
        await stub.ReplayRejected(api.ReplayRejectedRequest(ids=[missing.id]))
        await eventually(ingestion.rows, lambda rows: len(rows) == 4)
        await stub.CommitVersion(api.CommitVersionRequest(dataset=ingestion.dataset))
    assert (await replayed(ingestion, process)).result.same
    await ObjectStore.from_uri(ingestion.store_uri).delete(f"claims/{ingestion.dataset}/6")
    with pytest.raises(FailedPrecondition) as caught:
        await replayed(ingestion, process)
    assert caught.value.reason == "CLAIM_GONE"


def peak_bytes(process: Process) -> int:
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


async def test_an_event_of_50_mb_becomes_a_row_by_a_claim_check_and_is_refused_without_one(
    ingestion: Ingestion,
) -> None:
    process = await ingestion.start_ready()
    shape = (9_370, 1_000)
    tensor = api.TensorType(dtype=api.TENSOR_DTYPE_FLOAT32, shape=shape, format=api.TENSOR_FORMAT_RAW)
    signal = api.Field(name="signal", type=api.FIELD_TYPE_TENSOR, tensor=tensor)
    schema = api.Schema(key="id", features=[signal], label=ingestion.schema().label)
    async with ingestion.stub(process) as stub:
        await stub.ApplyDataset(api.ApplyDatasetRequest(name=ingestion.dataset, schema=schema))
    numbers = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
    samples = [{"id": f"p{number}", "signal": numbers + number, "malignant": 1} for number in range(4)]
    assert len(base64.b64encode(numbers.tobytes())) > 49_900_000
    before = peak_bytes(process)
    async with HeadraceClient(Targets({"kafka": ingestion.bootstrap}, kafka_idempotence=False)) as client:
        with pytest.raises(InvalidArgument) as caught:
            await client.produce(ingestion.dataset, samples[:1], key="id")
        assert caught.value.reason == "OVERSIZE_EVENT"
    targets = Targets({"kafka": ingestion.bootstrap, "store": ingestion.store_uri}, kafka_idempotence=False)
    async with HeadraceClient(targets) as client:
        assert await client.produce(ingestion.dataset, samples, key="id") == 4

    def stored() -> list[float]:
        table = ingestion.table().to_pyarrow_dataset()
        return sorted(
            float(np.frombuffer(value, "<f4")[-1])
            for batch in table.to_batches(columns=["signal"], batch_size=1)
            for value in batch.column("signal").to_pylist()
        )

    async def last_numbers() -> list[float]:
        return await asyncio.to_thread(stored)

    last = float(numbers[-1, -1])
    assert await eventually(last_numbers, lambda found: len(found) == 4) == [last + n for n in range(4)]
    # One of them at a time, however many wait: decoding and writing it takes some nine of its copies.
    assert peak_bytes(process) - before < 12 * 50_000_000
    assert await process.stop() == 0


@pytest.mark.kill
async def test_a_kill_after_payloads_were_fetched_loses_nothing_and_doubles_nothing(
    ingestion: Ingestion,
) -> None:
    process = await ingestion.start_ready()
    await ingestion.apply(process)
    await process.stop()
    process = await ingestion.start(HEADRACE_FAULT="ingestion.after-claim-fetch")
    records = [await claimed(ingestion, number) for number in range(0, 10, 2)]
    missing = claim(ingestion, 11, row(11), f"claims/{ingestion.dataset}/none")
    await ingestion.publish([*records, *(inline(ingestion, number) for number in range(1, 10, 2)), missing])
    await process.killed()
    assert await ingestion.rows() == []
    process = await ingestion.start_ready()
    rows = await eventually(ingestion.rows, lambda rows: len(rows) >= 10)
    assert [r["_event_id"] for r in rows] == [event_id(ingestion, number) for number in range(10)]
    [entry] = await eventually(lambda: ingestion.rejected(process), bool)
    assert (entry.event_id, entry.reason) == (event_id(ingestion, 11), "CLAIM_MISSING")
    assert await process.stop() == 0


async def rejected_claims(ingestion: Ingestion, process: Process) -> None:
    """Two rejected events, of which only the payloads tell whose they are: nobody's, and the subject's."""
    await ingestion.apply(process)
    for number, who in enumerate(("nobody", subject(ingestion))):
        path, payload = f"claims/{ingestion.dataset}/{number}", row(number, id=who, radius=-1)
        await put(ingestion, path, payload)
        _, value, headers = claim(ingestion, number, payload, path)
        await ingestion.publish([(None, value, headers)])
    await eventually(lambda: ingestion.rejected(process), lambda found: len(found) == 2)


async def check_erased(ingestion: Ingestion, process: Process) -> None:
    assert (await erased(ingestion, process)).rejected_count == 1
    store = ObjectStore.from_uri(ingestion.store_uri)
    left = [await store.exists(f"claims/{ingestion.dataset}/{number}") for number in range(2)]
    assert left == [True, False]
    entries = {bool(entry.headers): entry.state for entry in await ingestion.rejected(process)}
    assert entries == {True: api.REJECTED_STATE_PENDING, False: api.REJECTED_STATE_DISCARDED}
    assert await process.stop() == 0


async def test_an_erasure_takes_the_payloads_that_a_subjects_rejected_events_claim(
    ingestion: Ingestion,
) -> None:
    process = await ingestion.start_ready()
    await rejected_claims(ingestion, process)
    await request(ingestion, process)
    await check_erased(ingestion, process)


@pytest.mark.kill
@pytest.mark.parametrize("step", ["rejected", "claims"])
async def test_an_erasure_that_dies_beside_a_payload_removes_it_afterwards(
    ingestion: Ingestion, step: str
) -> None:
    process = await ingestion.start_ready(HEADRACE_FAULT=f"ingestion.after-erase-{step}")
    await rejected_claims(ingestion, process)
    await request(ingestion, process)
    await process.killed()
    await check_erased(ingestion, await ingestion.start_ready())


async def test_payloads_are_removed_by_age_except_where_a_rejected_event_waits(ingestion: Ingestion) -> None:
    process = await ingestion.start_ready()
    await ingestion.apply(process)
    store = ObjectStore.from_uri(ingestion.store_uri)
    names = {name: f"claims/{ingestion.dataset}/{name}" for name in ("young", "old", "waits", "discarded")}
    for path in names.values():
        await put(ingestion, path, row(1, radius=-1))
    await ingestion.publish(
        [
            claim(ingestion, number, row(1, radius=-1), names[name])
            for number, name in enumerate(("waits", "discarded"))
        ]
    )
    found = await eventually(lambda: ingestion.rejected(process), lambda found: len(found) == 2)
    async with ingestion.stub(process) as stub:
        [gone] = [entry.id for entry in found if entry.event_id == event_id(ingestion, 1)]
        await stub.DiscardRejected(api.DiscardRejectedRequest(ids=[gone], reason="test"))
    assert await process.stop() == 0
    long_ago = (datetime.now(UTC) - timedelta(days=9)).timestamp()
    folder = Path(urlsplit(ingestion.store_uri).path)
    for name in ("old", "waits", "discarded"):
        os.utime(folder / names[name], (long_ago, long_ago))

    process = await ingestion.start_ready()

    async def left() -> set[str]:
        return {name for name, path in names.items() if await store.exists(path)}

    # The discarded entry's payload stays as long as a replay of it would have stayed in the topic.
    assert await eventually(left, lambda names: "old" not in names) == {"young", "waits", "discarded"}
    assert await process.stop() == 0


@pytest.fixture
async def on_s3(
    kafka_bootstrap: str,
    postgres_dsn: str,
    s3_endpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Ingestion]:
    use_s3(monkeypatch, s3_endpoint)
    root = f"s3://{BUCKET}/tests/{uuid.uuid4()}"
    environment = Ingestion(kafka_bootstrap, postgres_dsn, root, tmp_path)
    yield environment
    await environment.close()


async def test_while_s3_fails_claim_checks_wait_and_none_is_rejected_for_it(
    on_s3: Ingestion, proxy: FaultyHttp
) -> None:
    process = await on_s3.start_ready(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{proxy.port}", HEADRACE_INGESTION_RETRY_SECONDS="0.5"
    )
    await on_s3.apply(process)
    records = [await claimed(on_s3, number) for number in range(3)]
    await proxy.fail(Fault.ERROR)
    await on_s3.publish(records)
    why = await eventually(process.why_unready, bool, seconds=120)
    assert "does not do its work" in why
    proxy.heal()
    rows = await eventually(on_s3.rows, lambda rows: len(rows) >= 3)
    assert [r["_event_id"] for r in rows] == [event_id(on_s3, number) for number in range(3)]
    await eventually(process.is_ready, bool)
    assert await on_s3.rejected(process) == []
    assert await process.stop() == 0
