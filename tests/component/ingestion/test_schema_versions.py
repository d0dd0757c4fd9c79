"""Versions of a schema that their owner declares while events flow, on real parts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pytest
from tests.support.ingestion import Headers, Ingestion, Process, Running
from tests.support.waiting import eventually

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.api.ingestion.v1 import versions_pb2 as versions
from headrace.errors import FailedPrecondition
from headrace.ingestion.domain.content_hash import hash_rows, to_hex
from headrace.ingestion.storage.repository import PostgresCatalogue
from headrace.ingestion.translation import schema_from_message
from headrace.postgres import connect
from headrace.runtime.clock import utc_now

pytestmark = pytest.mark.broker

Event = tuple[bytes | None, bytes | None, Headers]


def declared(ingestion: Ingestion) -> api.Schema:
    """Without the grade, with a smaller radius, and with the height, which each event has."""
    schema = ingestion.schema()
    del schema.features[1]
    schema.features[0].max = 10
    schema.features.add(name="height", type=api.FIELD_TYPE_FLOAT64, default_value="1.5", nullable=False)
    return schema


async def apply(
    ingestion: Ingestion, process: Process, schema: api.Schema, schema_version: int = 0
) -> api.Dataset:
    request = api.ApplyDatasetRequest(name=ingestion.dataset, schema=schema, schema_version=schema_version)
    async with ingestion.stub(process) as stub:
        return await stub.ApplyDataset(request)


def event(ingestion: Ingestion, number: int, version: str | None = None, **fields: object) -> Event:
    named = {} if version is None else {"ce_dataschema": version}
    payload = json.dumps({"id": "p", "malignant": 1, **fields}).encode()
    return b"p", payload, ingestion.headers(f"{ingestion.dataset}-{number:03}", **named)


def first(ingestion: Ingestion, number: int, version: str | None = None) -> Event:
    """One that only the first version takes."""
    return event(ingestion, number, version, radius=100, grade=number)


def second(ingestion: Ingestion, number: int, version: str | None = None) -> Event:
    """One that only the second version takes."""
    return event(ingestion, number, version, radius=1, height=number)


async def cut(ingestion: Ingestion, process: Process) -> api.DatasetVersion:
    async with ingestion.stub(process) as stub:
        return await stub.CommitVersion(api.CommitVersionRequest(dataset=ingestion.dataset))


async def read(ingestion: Ingestion, process: Process, version: int) -> pa.Table:
    request = versions.ReadVersionRequest(
        dataset=ingestion.dataset, version=versions.VersionName(number=version)
    )
    async with ingestion.version_stub(process) as stub:
        answers = [answer async for answer in stub.ReadVersion(request)]
    return pa.concat_tables(pa.ipc.open_stream(answer.arrow_stream).read_all() for answer in answers)


async def replayed_hash(ingestion: Ingestion, process: Process, version: int) -> str:
    request = versions.ReplayVersionRequest(
        dataset=ingestion.dataset, version=versions.VersionName(number=version)
    )
    async with ingestion.version_stub(process) as stub:
        answers = [answer async for answer in stub.ReplayVersion(request)]
    return answers[-1].result.content_hash


def hash_of_table(ingestion: Ingestion, version: api.DatasetVersion) -> str:
    """The hash of what the table has at a version, over all of its own columns."""
    rows = pa.table(ingestion.table(version.table_version).to_pyarrow_table())
    return to_hex(hash_rows(rows, [name for name in rows.column_names if not name.startswith("_")]))


def values(rows: Sequence[object], *names: str) -> list[tuple[object, ...]]:
    return [tuple(row[name] for name in names) for row in rows]  # type: ignore[index]


async def test_a_version_that_is_declared_in_the_middle_of_a_stream_loses_no_event(
    shared_ingestion: Running,
) -> None:
    ingestion, process = shared_ingestion
    await ingestion.apply(process)
    await ingestion.publish([first(ingestion, 0), first(ingestion, 1, "1")])
    await eventually(ingestion.rows, lambda rows: len(rows) == 2)
    before = await cut(ingestion, process)
    with pytest.raises(FailedPrecondition, match="schema_version: 2") as undeclared:
        await apply(ingestion, process, declared(ingestion))
    assert undeclared.value.reason == "INCOMPATIBLE_SCHEMA"
    assert (await apply(ingestion, process, declared(ingestion), 2)).schema_version == 2
    # One batch, or as many as the broker makes of them: each event is read by its own version.
    address = f"datasets/{ingestion.dataset}/schemas/1"
    await ingestion.publish(
        [
            first(ingestion, 2, address),
            second(ingestion, 3),
            first(ingestion, 4),
            second(ingestion, 5, "2"),
            second(ingestion, 6, address),
            first(ingestion, 7, "3"),
            first(ingestion, 8, f"https://{address}"),
        ]
    )
    rejected = await eventually(lambda: ingestion.rejected(process), lambda found: len(found) == 3)
    rows = await eventually(ingestion.rows, lambda found: len(found) == 6)
    assert values(rows, "radius", "grade", "height") == [
        (100.0, 0, None),
        (100.0, 1, None),
        # From here on the grade of the first version is not asked for any more.
        (100.0, None, 1.5),
        (1.0, None, 3.0),
        (1.0, None, 5.0),
        (100.0, None, 1.5),
    ]
    assert {(sample.event_id[-3:], sample.reason, sample.field) for sample in rejected} == {
        ("004", "SCHEMA_VIOLATION", "radius"),
        ("006", "SCHEMA_VIOLATION", "height"),
        ("007", "SCHEMA_UNKNOWN", "ce_dataschema"),
    }
    after = await cut(ingestion, process)
    assert (before.schema_version, after.schema_version, after.row_count) == (1, 2, 6)
    # Each version is read by its own schema, and its hash is that of its rows.
    assert (await read(ingestion, process, 1)).column_names == ["id", "radius", "grade", "malignant"]
    assert (await read(ingestion, process, 2)).column_names == ["id", "radius", "height", "malignant"]
    for version in (before, after):
        assert hash_of_table(ingestion, version) == version.content_hash
    assert await replayed_hash(ingestion, process, 1) == before.content_hash
    with pytest.raises(FailedPrecondition) as changed:
        await replayed_hash(ingestion, process, 2)
    assert changed.value.reason == "SCHEMA_CHANGED"
    async with ingestion.stub(process) as stub:
        known = (await stub.ListSchemas(api.ListSchemasRequest(dataset=ingestion.dataset))).schemas
    assert [(each.version, each.schema) for each in known] == [
        (2, declared(ingestion)),
        (1, ingestion.schema()),
    ]


async def test_a_rejected_event_is_replayed_by_the_version_that_it_is_corrected_to(
    shared_ingestion: Running,
) -> None:
    ingestion, process = shared_ingestion
    await ingestion.apply(process)
    await apply(ingestion, process, declared(ingestion), 2)
    await ingestion.publish([first(ingestion, 0)])
    [rejected] = await eventually(lambda: ingestion.rejected(process), bool)
    correction = api.Correction(attributes={"dataschema": "1"})
    async with ingestion.stub(process) as stub:
        await stub.ReplayRejected(api.ReplayRejectedRequest(ids=[rejected.id], correction=correction))
    [row] = await eventually(ingestion.rows, bool)
    assert values([row], "radius", "height") == [(100.0, 1.5)]


async def test_a_declaration_is_for_one_number_and_for_what_all_events_can_become(
    shared_ingestion: Running,
) -> None:
    ingestion, process = shared_ingestion
    first_schema, second_schema = ingestion.schema(), declared(ingestion)
    await ingestion.apply(process)
    with pytest.raises(FailedPrecondition, match="schema_version: 2") as ahead:
        await apply(ingestion, process, second_schema, 3)
    assert ahead.value.reason == "SCHEMA_VERSION_AHEAD"
    assert (await apply(ingestion, process, second_schema, 2)).schema_version == 2
    # Applied again it is what it was, and grows under the number that its file says.
    assert (await apply(ingestion, process, second_schema, 2)).schema_version == 2
    second_schema.features.add(name="site", type=api.FIELD_TYPE_STRING, nullable=True)
    assert (await apply(ingestion, process, second_schema, 2)).schema_version == 3
    # An older file changes nothing back.
    for version in (0, 1, 2):
        with pytest.raises(FailedPrecondition) as stale:
            await apply(ingestion, process, first_schema, version)
        assert stale.value.reason == "INCOMPATIBLE_SCHEMA"
    retyped = ingestion.schema()
    retyped.features[1].type = api.FIELD_TYPE_STRING
    with pytest.raises(FailedPrecondition, match="give the new field another name") as taken:
        await apply(ingestion, process, retyped, 4)
    assert taken.value.reason == "SCHEMA_NOT_CONVERTIBLE"
    assert (await apply(ingestion, process, first_schema, 4)).schema_version == 4
    # A dataset that is made from a file begins where the file is.
    async with ingestion.stub(process) as stub:
        fresh = await stub.ApplyDataset(
            api.ApplyDatasetRequest(name=f"{ingestion.dataset}-new", schema=first_schema, schema_version=4)
        )
    assert fresh.schema_version == 4


async def test_earlier_versions_are_known_after_a_restart(ingestion: Ingestion) -> None:
    process = await ingestion.start_ready()
    await ingestion.apply(process)
    await apply(ingestion, process, declared(ingestion), 2)
    await ingestion.publish([second(ingestion, 0), first(ingestion, 1, "1")])
    await eventually(ingestion.rows, lambda rows: len(rows) == 2)
    assert await process.stop() == 0
    await ingestion.publish([first(ingestion, 2, "1"), second(ingestion, 3)])
    process = await ingestion.start_ready()
    async with ingestion.stub(process) as stub:
        sample = {"id": "q", "radius": 50, "malignant": 0}
        await stub.AppendSamples(
            iter(
                [
                    api.AppendSamplesRequest(
                        dataset=ingestion.dataset,
                        event_id=f"{ingestion.dataset}-004",
                        json=json.dumps(sample).encode(),
                        schema_version=1,
                    )
                ]
            )
        )
    rows = await eventually(ingestion.rows, lambda rows: len(rows) == 5)
    assert values(rows, "radius", "height") == [
        (1.0, 0.0),
        (100.0, 1.5),
        (100.0, 1.5),
        (1.0, 3.0),
        (50.0, 1.5),
    ]
    assert await ingestion.rejected(process) == []


@pytest.mark.kill
async def test_what_was_stored_before_a_declaration_is_not_rejected_after_a_crash(
    ingestion: Ingestion,
) -> None:
    """The process dies before it commits offsets, and the version that is declared takes no such event."""
    process = await ingestion.start_ready()
    await ingestion.apply(process)
    await ingestion.caught_up(process)
    assert await process.stop() == 0
    doomed = await ingestion.start(HEADRACE_FAULT="ingestion.after-delta-commit")
    await ingestion.publish([first(ingestion, number) for number in range(3)])
    await doomed.killed()
    stored = len(await ingestion.rows())
    assert stored
    async with connect(ingestion.dsn, schema="ingestion", application_name="tests") as pool:
        catalogue = PostgresCatalogue(pool)
        dataset = (await catalogue.datasets([ingestion.dataset]))[ingestion.dataset]
        schema = schema_from_message(declared(ingestion))
        async with catalogue.transaction() as repository:
            assert await repository.update_dataset(
                replace(dataset, schema=schema, schema_version=2, declared_version=2, update_time=utc_now()),
                dataset,
            )
    again = await ingestion.start_ready()
    await ingestion.publish([second(ingestion, number) for number in range(3, 6)])
    rows = await eventually(ingestion.rows, lambda rows: len(rows) == stored + 3)
    assert len({row["_event_id"] for row in rows}) == stored + 3
    # The broker may have given the first process fewer than all of them.
    assert len(await ingestion.rejected(again)) == 3 - stored
    assert await again.stop() == 0
