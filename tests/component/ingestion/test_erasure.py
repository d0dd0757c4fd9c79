"""A subject's erasure on real parts: all of it goes, nothing else does, and a death in between costs time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import deltalake
import pyarrow as pa
import pytest
from tests.support.ingestion import Headers, Ingestion, Process, Running
from tests.support.prediction_log import PlayedLog, play_log
from tests.support.traces_of_data import files_with, sql_tables_with
from tests.support.waiting import eventually

from headrace.api.inference.v1 import inference_pb2
from headrace.api.ingestion.v1 import erasure_pb2, erasure_pb2_grpc, versions_pb2
from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.embedded.parts import free_port
from headrace.errors import FailedPrecondition, NotFound, Unavailable
from headrace.events.ingestion.v1 import events_pb2
from headrace.messaging import topics
from headrace.rpc.client import channel

pytestmark = pytest.mark.broker

# Small files are merged at once, so that the subject is in files that only earlier versions have.
BUSY = {"HEADRACE_INGESTION_MERGE_MIN_FILES": "3", "HEADRACE_INGESTION_MAINTENANCE_SECONDS": "0.2"}


def subject(ingestion: Ingestion) -> str:
    """This test's own: rejected events of no dataset here, as other tests' are, would be erased, too."""
    return f"subject-of-{ingestion.dataset}"


def sample(ingestion: Ingestion, number: int, who: str, **changes: object) -> tuple[bytes, bytes, Headers]:
    value = {"id": who, "radius": 1.5 + number, "grade": number, "malignant": number % 2, **changes}
    return who.encode(), json.dumps(value).encode(), ingestion.headers(f"{ingestion.dataset}-{number}")


async def stored(ingestion: Ingestion, process: Process, *records: tuple[bytes, bytes, Headers]) -> None:
    """Publish them, and wait until they are rows."""
    before = await ingestion.rows()
    await ingestion.publish(records)
    await eventually(ingestion.rows, lambda rows: len(rows) == len(before) + len(records))


async def commit(ingestion: Ingestion, process: Process) -> api.DatasetVersion:
    async with ingestion.stub(process) as stub:
        return await stub.CommitVersion(api.CommitVersionRequest(dataset=ingestion.dataset))


async def filled(ingestion: Ingestion, process: Process) -> list[api.DatasetVersion]:
    """Two versions with the subject, the first of them pinned, one more file, and three rejected events."""
    async with ingestion.stub(process) as stub:
        split = api.Split(train=0.5, validation=0.25, test=0.25)
        await stub.ApplyDataset(
            api.ApplyDatasetRequest(name=ingestion.dataset, schema=ingestion.schema(), split=split)
        )
    who = subject(ingestion)
    await stored(ingestion, process, sample(ingestion, 1, who), sample(ingestion, 2, "other"))
    first = await commit(ingestion, process)
    async with ingestion.version_stub(process) as versions:
        name = versions_pb2.VersionName(number=first.version)
        await versions.PinVersion(versions_pb2.PinVersionRequest(dataset=ingestion.dataset, version=name))
    await stored(ingestion, process, sample(ingestion, 3, who), sample(ingestion, 4, "another"))
    second = await commit(ingestion, process)
    await stored(ingestion, process, sample(ingestion, 5, who))
    await ingestion.publish(
        [
            sample(ingestion, 6, who, radius=-1),
            (
                b"",
                b'{"id":"' + who.encode() + b'", no JSON',
                ingestion.headers(f"{ingestion.dataset}-7"),
            ),
            sample(ingestion, 8, "other", radius=-1),
        ]
    )
    await eventually(lambda: ingestion.rejected(process), lambda found: len(found) == 3)
    return [first, second]


async def request(ingestion: Ingestion, process: Process, who: str = "") -> erasure_pb2.Erasure:
    async with channel(process.target) as connection:
        stub = erasure_pb2_grpc.ErasureServiceStub(connection)
        return await stub.EraseSubject(
            erasure_pb2.EraseSubjectRequest(dataset=ingestion.dataset, key=who or subject(ingestion))
        )


async def erasures(ingestion: Ingestion, process: Process) -> list[erasure_pb2.Erasure]:
    async with channel(process.target) as connection:
        stub = erasure_pb2_grpc.ErasureServiceStub(connection)
        answer = await stub.ListErasures(erasure_pb2.ListErasuresRequest(dataset=ingestion.dataset))
        return list(answer.erasures)


async def erased(ingestion: Ingestion, process: Process) -> erasure_pb2.Erasure:
    """Wait until the one erasure is done."""

    async def newest() -> erasure_pb2.Erasure:
        [found] = await erasures(ingestion, process)
        return found

    return await eventually(newest, lambda found: found.state == erasure_pb2.ERASURE_STATE_DONE)


async def rows_at(ingestion: Ingestion, version: api.DatasetVersion) -> list[Mapping[str, object]]:
    def read() -> list[Mapping[str, object]]:
        found: list[Mapping[str, object]] = pa.table(
            ingestion.table(version.table_version).to_pyarrow_table()
        ).to_pylist()
        return found

    return await asyncio.to_thread(read)


async def check(ingestion: Ingestion, process: Process, before: list[api.DatasetVersion]) -> None:
    """That the subject is nowhere, that everybody else is where they were, and that versions say so."""
    folder = Path(urlsplit(ingestion.store_uri).path) / "datasets" / ingestion.dataset
    assert await asyncio.to_thread(files_with, folder, [subject(ingestion)]) == []
    assert await sql_tables_with(ingestion.dsn, "ingestion", [subject(ingestion)]) == []
    assert [row["id"] for row in await ingestion.rows()] == ["other", "another"]
    assert [row["id"] for row in await rows_at(ingestion, before[0])] == ["other"]
    assert sorted(str(row["id"]) for row in await rows_at(ingestion, before[1])) == ["another", "other"]
    first, second = await ingestion.versions(process)
    assert (first.erased_rows, second.erased_rows) == (1, 2)
    assert [sum(count.row_count for count in v.split_counts.counts) for v in (first, second)] == [1, 2]
    assert [first.content_hash, second.content_hash] == [version.content_hash for version in before]
    assert first.pinned
    entries = await ingestion.rejected(process)
    assert sorted((bool(entry.payload), entry.state) for entry in entries) == [
        (False, api.REJECTED_STATE_DISCARDED),
        (False, api.REJECTED_STATE_DISCARDED),
        (True, api.REJECTED_STATE_PENDING),
    ]

    # What is cut from here on counts, hashes and describes the rows that there are.
    third = await commit(ingestion, process)
    assert (third.version, third.row_count, third.erased_rows) == (3, 2, 0)
    async with ingestion.version_stub(process) as versions:

        async def replay(number: int) -> versions_pb2.ReplayVersionResponse:
            name = versions_pb2.VersionName(number=number)
            asked = versions_pb2.ReplayVersionRequest(dataset=ingestion.dataset, version=name)
            return [answer async for answer in versions.ReplayVersion(asked)][-1]

        assert (await replay(3)).result.same
        with pytest.raises(FailedPrecondition, match="1 rows of version 1") as refused:
            await replay(1)
        assert refused.value.reason == "ROWS_ERASED"
        for number, count in ((1, 1), (2, 2), (3, 2)):
            name = versions_pb2.VersionName(number=number)
            profile = await versions.GetProfile(
                versions_pb2.GetProfileRequest(dataset=ingestion.dataset, version=name)
            )
            assert [described.count for described in profile.fields] == [count] * 4


async def test_a_subject_is_erased_from_every_version_and_every_file(ingestion: Ingestion) -> None:
    process = await ingestion.start_ready(**BUSY)
    before = await filled(ingestion, process)
    # The merged file, beside those that it was made of.
    await eventually(ingestion.files, lambda count: count == 1)
    await request(ingestion, process)
    done = await erased(ingestion, process)
    assert (done.row_count, done.rejected_count, list(done.versions)) == (3, 2, [1, 2])
    await check(ingestion, process, before)
    # The rows that come now are the subject's all the same, and their events are no repetitions.
    await stored(ingestion, process, sample(ingestion, 9, subject(ingestion)))
    [(headers, told)] = await ingestion.published(topics.ERASURES, 1)
    assert headers["ce_id"].decode() == done.id
    assert events_pb2.SubjectErased.FromString(told).erasure == done
    assert subject(ingestion).encode() not in told
    assert await process.stop() == 0
    assert subject(ingestion) not in (ingestion.folder / "ingestion-0.log").read_text()


STEPS = (
    "request",
    "state",
    "commit",
    "write",
    "removals",
    "log",
    "remove",
    "rejected",
    "predictions",
    "finish",
)


@pytest.mark.kill
async def test_an_erasure_that_dies_at_each_step_is_ended_by_whoever_comes_next(ingestion: Ingestion) -> None:
    process = await ingestion.start_ready(**BUSY)
    before = await filled(ingestion, process)
    await eventually(ingestion.files, lambda count: count == 1)
    await process.stop()
    first, *others = STEPS
    async with play_log(free_port()) as log:
        settings = {**BUSY, "HEADRACE_INGESTION_INFERENCE_TARGET": log.target}
        process = await ingestion.start_ready(**settings, HEADRACE_FAULT=f"ingestion.after-erase-{first}")
        with pytest.raises(Unavailable):
            await request(ingestion, process)
        await process.killed()
        for step in others:
            # It goes on with the erasure, and dies a step later.
            process = await ingestion.start(**settings, HEADRACE_FAULT=f"ingestion.after-erase-{step}")
            await process.killed()
        process = await ingestion.start_ready(**settings)
        done = await erased(ingestion, process)
    assert (done.row_count, done.rejected_count, list(done.versions)) == (3, 2, [1, 2])
    assert done.prediction_count == PlayedLog.count
    assert {asked.erasure for asked in log.asked} == {done.id}
    await check(ingestion, process, before)


async def test_an_erasure_is_not_done_before_the_prediction_log_has_answered(ingestion: Ingestion) -> None:
    port = free_port()
    process = await ingestion.start_ready(HEADRACE_INGESTION_INFERENCE_TARGET=f"127.0.0.1:{port}")
    await ingestion.apply(process)
    await stored(ingestion, process, sample(ingestion, 1, subject(ingestion)), sample(ingestion, 2, "other"))
    requested = await request(ingestion, process)

    async def problem() -> str:
        [found] = await erasures(ingestion, process)
        assert found.state != erasure_pb2.ERASURE_STATE_DONE
        return found.problem

    why = await eventually(problem, bool)
    assert f"the inference service at 127.0.0.1:{port} does not answer" in why
    assert [row["id"] for row in await ingestion.rows()] == ["other"]
    async with play_log(port) as log:
        done = await erased(ingestion, process)
    assert (done.row_count, done.prediction_count, done.problem) == (1, PlayedLog.count, "")
    assert log.asked[-1] == inference_pb2.ErasePredictionsRequest(
        erasure=requested.id, dataset=ingestion.dataset, subject=subject(ingestion)
    )
    assert subject(ingestion) not in process.log.read_text()


async def test_rows_that_arrive_meanwhile_stay(ingestion: Ingestion) -> None:
    process = await ingestion.start_ready(**BUSY)
    await ingestion.apply(process)
    await stored(ingestion, process, sample(ingestion, 1, subject(ingestion)), sample(ingestion, 2, "other"))

    async def arrive() -> None:
        for number in range(10, 30):
            await ingestion.publish([sample(ingestion, number, f"p{number}")])

    arriving = asyncio.create_task(arrive())
    await request(ingestion, process)
    await arriving
    await erased(ingestion, process)
    rows = await eventually(ingestion.rows, lambda rows: len(rows) == 21)
    assert subject(ingestion) not in {row["id"] for row in rows}
    version = await commit(ingestion, process)
    assert version.row_count == 21


async def test_checkpoints_of_before_hold_no_file_of_the_subject(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    await ingestion.apply(process)
    await stored(ingestion, process, sample(ingestion, 1, subject(ingestion)), sample(ingestion, 2, "other"))
    version = await commit(ingestion, process)
    await asyncio.to_thread(lambda: ingestion.table().create_checkpoint())
    await stored(ingestion, process, sample(ingestion, 3, "another"))
    await request(ingestion, process)
    await erased(ingestion, process)
    assert [row["id"] for row in await rows_at(ingestion, version)] == ["other"]
    assert [row["id"] for row in await ingestion.rows()] == ["other", "another"]
    await stored(ingestion, process, sample(ingestion, 4, "last"))
    history = await asyncio.to_thread(lambda: deltalake.DeltaTable(ingestion.table().table_uri).history())
    assert [entry["operation"] for entry in history]


async def test_what_does_not_exist_is_not_erased(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    with pytest.raises(NotFound) as missing:
        await request(ingestion, process)
    assert missing.value.reason == "DATASET_NOT_FOUND"
    async with channel(process.target) as connection:
        stub = erasure_pb2_grpc.ErasureServiceStub(connection)
        with pytest.raises(NotFound) as unknown:
            await stub.GetErasure(erasure_pb2.GetErasureRequest(id="none"))
    assert unknown.value.reason == "ERASURE_NOT_FOUND"
    await ingestion.apply(process)
    await request(ingestion, process)
    done = await erased(ingestion, process)
    assert (done.row_count, done.rejected_count, list(done.versions)) == (0, 0, [])
