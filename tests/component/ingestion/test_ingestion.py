from __future__ import annotations

import json
import random
from datetime import UTC, datetime

import deltalake
import pyarrow as pa
import pytest
from tests.support.ingestion import Headers, Ingestion, Process, Running
from tests.support.waiting import eventually

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.errors import FailedPrecondition, HeadraceError, InvalidArgument, NotFound
from headrace.events.ingestion.v1 import events_pb2
from headrace.ingestion.domain.content_hash import hash_rows, to_hex
from headrace.messaging import topics

pytestmark = pytest.mark.broker

TRACE = "0af7651916cd43dd8448eb211c80319c"
ABSENT = object()


def sample(**changes: object) -> bytes:
    row = {"id": "p1", "radius": 1.5, "grade": 3, "malignant": 1, **changes}
    return json.dumps({name: value for name, value in row.items() if value is not ABSENT}).encode()


def good(ingestion: Ingestion, number: int) -> tuple[bytes | None, bytes | None, Headers]:
    return (b"p1", sample(id=f"p{number}"), ingestion.headers(f"{ingestion.dataset}-{number:06}"))


async def test_an_event_becomes_a_row_and_says_where_it_came_from(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    dataset = await ingestion.apply(process)
    assert dataset.schema_version == 1
    assert dataset.table_uri == f"{ingestion.store_uri}/datasets/{ingestion.dataset}"
    parent = f"00-{TRACE}-b7ad6b7169203331-01"
    protobuf = events_pb2.Sample(
        fields={
            "id": events_pb2.Value(string_value="p2"),
            "radius": events_pb2.Value(double_value=2.5),
            "grade": events_pb2.Value(),
            "malignant": events_pb2.Value(int_value=0),
        }
    ).SerializeToString()
    structured = json.dumps(
        {
            "specversion": "1.0",
            "id": "e3",
            "source": "tests",
            "type": "headrace.ingestion.sample.v1",
            "subject": ingestion.dataset,
            "traceparent": parent,
            "data": json.loads(sample(id="p3")),
        }
    ).encode()
    await ingestion.publish(
        [
            (b"p1", sample(), ingestion.headers("e1", traceparent=parent)),
            (b"p2", protobuf, ingestion.headers("e2", content__type="application/protobuf")),
            (b"p3", structured, [("content-type", b"application/cloudevents+json")]),
        ]
    )
    rows = await eventually(ingestion.rows, lambda rows: len(rows) == 3)
    first, second, third = rows
    assert [third[name] for name in ("id", "radius", "_traceparent")] == ["p3", 1.5, parent]
    assert [first[name] for name in ("id", "radius", "grade", "malignant")] == ["p1", 1.5, 3, 1]
    assert [second[name] for name in ("id", "radius", "grade", "malignant")] == ["p2", 2.5, None, 0]
    assert first["_event_id"] == "e1"
    assert first["_event_time"] == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert first["_topic"] == topics.SAMPLES
    assert first["_traceparent"] == parent
    async with ingestion.stub(process) as stub:
        described = await stub.GetDataset(api.GetDatasetRequest(name=ingestion.dataset))
        assert (described.row_count, described.rejected_count, described.latest_version) == (3, 0, 0)
        listed = await stub.ListDatasets(api.ListDatasetsRequest())
        assert [item for item in listed.datasets if item.name == ingestion.dataset] == [described]


async def test_an_event_that_its_producer_sends_again_is_stored_once(ingestion: Ingestion) -> None:
    first = await ingestion.start_ready()
    await ingestion.apply(first)

    def event(name: str, **changes: str) -> tuple[bytes | None, bytes | None, Headers]:
        return (b"p1", sample(), ingestion.headers(name, **changes))

    await ingestion.publish([event("e1"), event("e2"), event("e1")])
    await eventually(ingestion.rows, lambda rows: len(rows) == 2)
    assert await first.stop() == 0
    # It knows from the table what another process stored, and that ids of two sources are two things.
    second = await ingestion.start_ready()
    again = event("e2")
    await ingestion.publish([again, event("e3"), again, event("e1", ce_source="elsewhere"), event("e4")])
    rows = await eventually(ingestion.rows, lambda rows: any(row["_event_id"] == "e4" for row in rows))
    assert sorted((row["_event_id"], row["_event_source"]) for row in rows) == [
        ("e1", "elsewhere"),
        ("e1", "tests"),
        ("e2", "tests"),
        ("e3", "tests"),
        ("e4", "tests"),
    ]
    async with ingestion.stub(second) as stub:
        described = await stub.GetDataset(api.GetDatasetRequest(name=ingestion.dataset))
        assert (described.row_count, described.rejected_count) == (5, 0)
    assert await second.metric("headrace_ingestion_duplicates_total", dataset=ingestion.dataset) == 2
    assert await second.stop() == 0


async def test_every_kind_of_bad_event_is_rejected_and_its_neighbours_are_stored(
    ingestion: Ingestion,
) -> None:
    process = await ingestion.start_ready(HEADRACE_INGESTION_MAX_EVENT_BYTES="20000")
    await ingestion.apply(process)
    elsewhere = f"{ingestion.dataset}-unknown"
    bad: dict[str, tuple[bytes | None, dict[str, str | None], str, str, str]] = {
        # name: payload, header changes; reason, field, rule
        "truncated": (sample()[:20], {}, "MALFORMED_PAYLOAD", "", "json"),
        "empty": (b"", {}, "MALFORMED_PAYLOAD", "", "json"),
        "tombstone": (None, {}, "MALFORMED_PAYLOAD", "", "json"),
        "array": (b"[1]", {}, "MALFORMED_PAYLOAD", "", "object"),
        "nan": (sample().replace(b"1.5", b"NaN"), {}, "MALFORMED_PAYLOAD", "", "json"),
        "binary": (b"\x00\xff", {}, "MALFORMED_PAYLOAD", "", "json"),
        "missing": (sample(radius=ABSENT), {}, "SCHEMA_VIOLATION", "radius", "required"),
        "null": (sample(malignant=None), {}, "SCHEMA_VIOLATION", "malignant", "required"),
        "negative": (sample(radius=-1), {}, "SCHEMA_VIOLATION", "radius", "min"),
        "string": (sample(radius="1"), {}, "SCHEMA_VIOLATION", "radius", "type"),
        "bool": (sample(grade=True), {}, "SCHEMA_VIOLATION", "grade", "type"),
        "float": (sample(grade=1.0), {}, "SCHEMA_VIOLATION", "grade", "type"),
        "wide": (sample(grade=128), {}, "SCHEMA_VIOLATION", "grade", "type_range"),
        "class": (sample(malignant=2), {}, "SCHEMA_VIOLATION", "malignant", "allowed_values"),
        "keyless": (sample(id=""), {}, "SCHEMA_VIOLATION", "id", "not_empty"),
        "extra": (sample(extra="\0"), {}, "SCHEMA_VIOLATION", "extra", "unknown_field"),
        "large": (sample(id="x" * 30_000), {}, "OVERSIZE_EVENT", "", "max_event_bytes"),
        "unknown": (sample(), {"ce_subject": elsewhere}, "UNKNOWN_DATASET", "", ""),
        "nul": (sample(), {"ce_subject": f"{ingestion.dataset}\0"}, "UNKNOWN_DATASET", "", ""),
        "typeless": (sample(), {"ce_type": None}, "INVALID_CLOUDEVENT", "ce_type", ""),
        "foreign": (sample(), {"ce_type": "other.v1"}, "INVALID_CLOUDEVENT", "ce_type", ""),
        "old": (sample(), {"ce_specversion": "0.3"}, "INVALID_CLOUDEVENT", "ce_specversion", ""),
        "timeless": (sample(), {"ce_time": "soon"}, "INVALID_CLOUDEVENT", "ce_time", ""),
        "subjectless": (sample(), {"ce_subject": None}, "INVALID_CLOUDEVENT", "ce_subject", ""),
        "xml": (sample(), {"content__type": "text/xml"}, "INVALID_CLOUDEVENT", "content-type", ""),
        "proto": (b"\xff", {"content__type": "application/protobuf"}, "MALFORMED_PAYLOAD", "", "protobuf"),
    }
    records = []
    for number, (name, (payload, changes, *_)) in enumerate(bad.items()):
        event_id = f"{ingestion.dataset}-bad-{name}"
        records.append(good(ingestion, number))
        records.append((b"\xff\x00", payload, ingestion.headers(event_id, **changes)))
    await ingestion.publish(records)

    rows = await eventually(ingestion.rows, lambda rows: len(rows) >= len(bad))
    rejected = await eventually(
        lambda: ingestion.rejected(process), lambda rejected: len(rejected) >= len(bad)
    )
    assert len(rows) == len(bad)
    found = {item.event_id.removeprefix(f"{ingestion.dataset}-bad-"): item for item in rejected}
    assert {name: (item.reason, item.field, item.rule) for name, item in found.items()} == {
        name: (reason, field, rule) for name, (_, _, reason, field, rule) in bad.items()
    }
    assert len(rejected) == len(bad)
    for name, item in found.items():
        assert item.payload == (bad[name][0] or b"")
        assert item.key == b"\xff\x00"
        assert item.message
        assert item.headers["ce_id"].decode() == item.event_id
    events = await ingestion.published(topics.REJECTED_SAMPLES, len(bad) - 1)
    assert all(headers["ce_type"] == b"headrace.ingestion.sample-rejected.v1" for headers, _ in events)
    assert await process.stop() == 0


async def test_attributes_of_any_length_are_rejected_like_others(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    await ingestion.apply(process)
    # Random: what compresses would fit where it must not.
    long = f"{ingestion.dataset}-{random.Random(1).randbytes(10_000).hex()}"
    longer = f"{ingestion.dataset}-{random.Random(2).randbytes(700_000).hex()}"
    await ingestion.publish(
        [
            (long.encode(), sample(), ingestion.headers(long, ce_subject=long)),
            (longer.encode(), sample(), ingestion.headers(longer, ce_subject=longer)),
            (b"p1", json.dumps({long: 1}).encode(), ingestion.headers(f"{ingestion.dataset}-field")),
            (b"p1", sample(), ingestion.headers(f"{ingestion.dataset}-time", ce_time=long)),
            good(ingestion, 0),
        ]
    )
    rejected = await eventually(lambda: ingestion.rejected(process), lambda rejected: len(rejected) == 4)
    assert sorted(item.reason for item in rejected) == [
        "INVALID_CLOUDEVENT",
        "OVERSIZE_EVENT",
        "SCHEMA_VIOLATION",
        "UNKNOWN_DATASET",
    ]
    whole = [item.headers["ce_subject"].decode() for item in rejected]
    assert {long, longer} < set(whole)
    await ingestion.published(topics.REJECTED_SAMPLES, 4)
    assert len(await eventually(ingestion.rows, bool)) == 1


async def test_headers_that_cost_more_than_they_hold_stop_nothing(ingestion: Ingestion) -> None:
    process = await ingestion.start_ready(HEADRACE_INGESTION_MAX_PUBLISHED_BYTES="900000")
    await ingestion.apply(process)
    event_id = f"{ingestion.dataset}-headers"
    # As a map of Protobuf's they are twice as large.
    headers = [*ingestion.headers(event_id), *((f"{number:05}", b"") for number in range(99_999))]
    await ingestion.publish([(b"p1", b"x" * 300_000, headers), good(ingestion, 0)])
    [rejected] = await eventually(lambda: ingestion.rejected(process), bool)
    assert len(rejected.headers) == len(headers)
    assert len(await eventually(ingestion.rows, bool)) == 1
    await ingestion.published(topics.REJECTED_SAMPLES, 1)


async def test_a_page_of_large_rejected_events_ends_early(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    await ingestion.apply(process)
    large = 6 << 20
    for number in range(4):
        await ingestion.publish(
            [
                (
                    b"p1",
                    random.Random(number).randbytes(large),
                    ingestion.headers(f"{ingestion.dataset}-{number}"),
                )
            ]
        )
    rejected = await eventually(lambda: ingestion.rejected(process), lambda rejected: len(rejected) == 4)
    assert [len(item.payload) for item in rejected] == [large] * 4
    async with ingestion.stub(process) as stub:
        page = await stub.ListRejected(api.ListRejectedRequest(dataset=ingestion.dataset))
        assert len(page.rejected) == 2
        again = api.ListRejectedRequest(dataset=ingestion.dataset, page_token=page.next_page_token)
        last = await stub.ListRejected(again)
    found = [item.event_id for item in (*page.rejected, *last.rejected)]
    assert found == [item.event_id for item in reversed(rejected)]
    assert not last.next_page_token


async def test_rows_and_age_cut_versions_that_can_be_read_back(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    await ingestion.apply(process, rows=10)
    parent = f"00-{TRACE}-b7ad6b7169203331-01"
    first = (b"p0", sample(id="p0"), ingestion.headers("e0", traceparent=parent))
    await ingestion.publish([first, *(good(ingestion, number) for number in range(1, 12))])
    await eventually(lambda: ingestion.versions(process), bool)
    await eventually(ingestion.rows, lambda rows: len(rows) == 12)
    await ingestion.apply(process, seconds=1)
    await ingestion.publish([good(ingestion, 12)])
    versions = await eventually(
        lambda: ingestion.versions(process), lambda versions: versions[-1].row_count == 13
    )
    assert [version.version for version in versions] == list(range(1, len(versions) + 1))
    assert versions[0].traceparent == parent
    assert versions[0].row_count >= 10
    for version in versions:
        table = deltalake.DeltaTable(version.table_uri, version=version.table_version)
        rows = pa.table(table.to_pyarrow_table())
        assert rows.num_rows == version.row_count
        assert to_hex(hash_rows(rows, ["id", "radius", "grade", "malignant"])) == version.content_hash
    assert versions[-1].sources[0].topic == topics.SAMPLES

    events = await ingestion.committed(len(versions))
    assert [event.dataset_version for event in events] == versions
    assert events[0].schema == ingestion.schema()
    (headers, _), *_ = await ingestion.published(topics.DATASET_VERSIONS, 1)
    assert headers["ce_type"] == b"headrace.ingestion.dataset-version-committed.v1"


async def test_a_schedule_cuts_versions_of_what_is_new(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    with pytest.raises(InvalidArgument) as refused:
        await ingestion.apply(process, schedule="nightly")
    assert (refused.value.reason, refused.value.fields[0].field) == ("INVALID_CUT", "cut.schedule")
    # Each second, so that nobody waits for the night.
    dataset = await ingestion.apply(process, schedule="* * * * * *")
    assert dataset.cut == api.Cut(schedule="* * * * * *")
    for count in (1, 2):
        await ingestion.publish([good(ingestion, count)])
        versions = await eventually(
            lambda: ingestion.versions(process),
            lambda versions, count=count: len(versions) == count,
        )
    assert [version.row_count for version in versions] == [1, 2]


async def test_a_version_on_request(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    await ingestion.apply(process)
    request = api.CommitVersionRequest(dataset=ingestion.dataset)
    async with ingestion.stub(process) as stub:
        with pytest.raises(FailedPrecondition) as empty:
            await stub.CommitVersion(request)
        assert empty.value.reason == "DATASET_EMPTY"
        samples = [
            api.AppendSamplesRequest(dataset=ingestion.dataset, json=sample(id=f"p{number}"))
            for number in range(3)
        ]
        answer = await stub.AppendSamples(iter(samples))
        assert answer.appended_count == 3
        await eventually(ingestion.rows, lambda rows: len(rows) == 3)
        version = await stub.CommitVersion(request)
        assert (version.version, version.row_count) == (1, 3)
        assert await stub.CommitVersion(request) == version
        asked = api.GetVersionRequest(dataset=ingestion.dataset, version=1)
        assert await stub.GetVersion(asked) == version
    [event] = await ingestion.committed(1)
    assert event.dataset_version == version


async def test_a_schema_grows_and_never_shrinks(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    before = await ingestion.apply(process)
    assert await ingestion.apply(process) == before
    wider = ingestion.schema()
    wider.features.add(name="site", type=api.FIELD_TYPE_STRING, nullable=True)
    narrower = ingestion.schema()
    narrower.features[0].min = 1
    senseless = ingestion.schema()
    senseless.features[0].max = -1
    async with ingestion.stub(process) as stub:
        changed = await stub.ApplyDataset(api.ApplyDatasetRequest(name=ingestion.dataset, schema=wider))
        assert changed.schema_version == 2
        with pytest.raises(FailedPrecondition) as refused:
            await stub.ApplyDataset(api.ApplyDatasetRequest(name=ingestion.dataset, schema=narrower))
        assert refused.value.reason == "INCOMPATIBLE_SCHEMA"
        with pytest.raises(InvalidArgument) as invalid:
            await stub.ApplyDataset(api.ApplyDatasetRequest(name="other", schema=senseless))
        assert invalid.value.reason == "INVALID_SCHEMA"
        assert [violation.field for violation in invalid.value.fields] == ["schema.features.radius.min"]
    await ingestion.publish([(b"p1", sample(site="left"), ingestion.headers("e1")), good(ingestion, 2)])
    rows = await eventually(ingestion.rows, lambda rows: len(rows) == 2)
    assert sorted(str(row["site"]) for row in rows) == ["None", "left"]


async def test_a_schema_that_changes_while_events_flow_takes_effect_at_once(
    shared_ingestion: Running,
) -> None:
    ingestion, process = shared_ingestion
    await ingestion.apply(process)
    await ingestion.publish([good(ingestion, 0)])
    await eventually(ingestion.rows, lambda rows: len(rows) == 1)
    changed = ingestion.schema()
    changed.features[1].type = api.FIELD_TYPE_INT32
    changed.attributes.add(
        name="site",
        type=api.FIELD_TYPE_STRING,
        role=api.FIELD_ROLE_PROTECTED,
        nullable=True,
        pattern="^[A-Z]+$",
        default_value='"NONE"',
    )
    changed.attributes.add(
        name="taken", type=api.FIELD_TYPE_TIMESTAMP, role=api.FIELD_ROLE_TIME, nullable=True
    )
    async with ingestion.stub(process) as stub:
        answer = await stub.ApplyDataset(api.ApplyDatasetRequest(name=ingestion.dataset, schema=changed))
        assert (answer.schema_version, answer.schema) == (2, changed)
    own = f"{ingestion.dataset}-own"
    await ingestion.publish(
        [
            (b"p", sample(grade=70_000, taken="2025-01-01T00:00:00Z"), ingestion.headers(f"{own}-1")),
            (b"p", sample(site="LEFT"), ingestion.headers(f"{own}-2")),
            (b"p", sample(site="left"), ingestion.headers(f"{own}-3")),
        ]
    )
    rows = await eventually(ingestion.rows, lambda rows: len(rows) == 3)
    assert [(row["grade"], row["site"]) for row in rows] == [(3, None), (70_000, "NONE"), (3, "LEFT")]
    assert rows[1]["_event_time"] == rows[1]["taken"] == datetime(2025, 1, 1, tzinfo=UTC)
    [rejected] = await eventually(lambda: ingestion.rejected(process), bool)
    assert (rejected.field, rejected.rule) == ("site", "pattern")
    version = await _cut(ingestion, process)
    assert version.row_count == 3
    assert version.content_hash == to_hex(
        hash_rows(
            pa.table(
                deltalake.DeltaTable(version.table_uri, version=version.table_version).to_pyarrow_table()
            ),
            ["id", "radius", "grade", "malignant", "site", "taken"],
        )
    )


async def _cut(ingestion: Ingestion, process: Process) -> api.DatasetVersion:
    async with ingestion.stub(process) as stub:
        return await stub.CommitVersion(api.CommitVersionRequest(dataset=ingestion.dataset))


async def test_what_is_not_there_is_not_found(ingestion: Ingestion) -> None:
    process = await ingestion.start_ready(HEADRACE_INGESTION_MAX_EVENT_BYTES="1000")
    await ingestion.apply(process)
    async with ingestion.stub(process) as stub:
        calls = {
            "DATASET_NOT_FOUND": [
                stub.GetDataset(api.GetDatasetRequest(name="nowhere")),
                stub.CommitVersion(api.CommitVersionRequest(dataset="nowhere")),
                stub.ListVersions(api.ListVersionsRequest(dataset="nowhere")),
                stub.AppendSamples(iter([api.AppendSamplesRequest(dataset="nowhere", json=b"{}")])),
            ],
            "DATASET_VERSION_NOT_FOUND": [
                stub.GetVersion(api.GetVersionRequest(dataset=ingestion.dataset, version=1))
            ],
        }
        for reason, attempts in calls.items():
            for attempt in attempts:
                with pytest.raises(NotFound) as caught:
                    await attempt
                assert caught.value.reason == reason
        large = api.AppendSamplesRequest(dataset=ingestion.dataset, json=sample(id="x" * 2000))
        with pytest.raises(HeadraceError) as oversize:
            await stub.AppendSamples(iter([large]))
        assert oversize.value.reason == "OVERSIZE_EVENT"


async def test_a_dataset_that_one_instance_created_takes_samples_at_another(ingestion: Ingestion) -> None:
    first = await ingestion.start_ready()
    # Alone in the group, it reads every partition.
    await ingestion.apply(first)
    await ingestion.publish([good(ingestion, 1)])
    await eventually(ingestion.rows, lambda rows: len(rows) == 1)
    creator = await ingestion.start_ready(HEADRACE_INGESTION_CONSUMER_GROUP=f"{ingestion.group}-other")
    ingestion.dataset = f"{ingestion.dataset}-b"
    await ingestion.apply(creator)
    assert await creator.stop() == 0
    await ingestion.publish([good(ingestion, number) for number in range(5)])
    await eventually(ingestion.rows, lambda rows: len(rows) >= 5)
    assert await ingestion.rejected(first) == []
