"""Profiles, tags, pins, rows and replays of versions, on real parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime

import asyncpg
import pyarrow as pa
import pytest
from tests.support.ingestion import Ingestion, Process, Running
from tests.support.waiting import eventually

from headrace import splits
from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.api.ingestion.v1 import quality_pb2
from headrace.api.ingestion.v1 import versions_pb2 as versions
from headrace.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from headrace.events.ingestion.v1 import events_pb2
from headrace.ingestion.storage.repository import PostgresCatalogue
from headrace.messaging import topics
from headrace.postgres import connect

pytestmark = pytest.mark.broker


def sample(number: int) -> bytes:
    """Radius 0.5 for each number, no grade in every fourth, malignant where the number is odd."""
    fields = {"id": f"p{number}", "radius": number / 2, "grade": number % 3, "malignant": number % 2}
    if number % 4 == 0:
        del fields["grade"]
    return json.dumps(fields).encode()


async def publish(ingestion: Ingestion, numbers: range, times: Mapping[int, str] | None = None) -> None:
    headers = [
        ingestion.headers(
            f"{ingestion.dataset}-{number}", **({"ce_time": times[number]} if times is not None else {})
        )
        for number in numbers
    ]
    await ingestion.publish(
        [(f"p{n}".encode(), sample(n), header) for n, header in zip(numbers, headers, strict=True)]
    )


async def cut(ingestion: Ingestion, process: Process, numbers: range) -> api.DatasetVersion:
    """Publish these samples, wait for them and make them a version."""
    stored = len(await ingestion.rows()) + len(numbers)
    await publish(ingestion, numbers)
    await eventually(ingestion.rows, lambda rows: len(rows) == stored)
    async with ingestion.stub(process) as stub:
        return await stub.CommitVersion(api.CommitVersionRequest(dataset=ingestion.dataset))


def number(value: int) -> versions.VersionName:
    return versions.VersionName(number=value)


def tag(value: str) -> versions.VersionName:
    return versions.VersionName(tag=value)


async def test_each_version_has_the_profile_of_all_its_rows(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    await ingestion.apply(process)
    await cut(ingestion, process, range(100))
    await cut(ingestion, process, range(100, 200))
    async with ingestion.version_stub(process) as stub:
        first, second = [
            await stub.GetProfile(versions.GetProfileRequest(dataset=ingestion.dataset, version=number(n)))
            for n in (1, 2)
        ]
        both = await stub.DiffVersions(
            versions.DiffVersionsRequest(dataset=ingestion.dataset, base=number(1), other=number(2))
        )
    assert (first.row_count, second.row_count) == (100, 200)
    assert [field.name for field in second.fields] == ["id", "radius", "grade", "malignant"]
    key, radius, grade, malignant = second.fields
    assert (key.count, key.HasField("numbers"), len(key.top_values)) == (200, False, 0)
    assert (radius.count, radius.null_count) == (200, 0)
    assert (radius.numbers.min, radius.numbers.max) == (0.0, 99.5)
    assert radius.numbers.mean == pytest.approx(199 / 4)
    assert radius.numbers.deviation == pytest.approx(((200**2 - 1) / 12) ** 0.5 / 2)
    assert sum(radius.numbers.histogram) == pytest.approx(1)
    assert (grade.count, grade.null_count) == (150, 50)
    assert {item.value: item.count for item in malignant.top_values} == {"0": 100, "1": 100}
    radius_diff = both.fields[1]
    assert (radius_diff.base.numbers.max, radius_diff.other.numbers.max) == (49.5, 99.5)
    # Half of the second version's values are beyond the first's.
    assert radius_diff.ks == pytest.approx(0.5, abs=0.05)
    assert radius_diff.psi > 0.25
    assert both.fields[3].psi == pytest.approx(0)


@pytest.mark.parametrize("by", [api.SPLIT_BY_KEY, api.SPLIT_BY_TIME])
async def test_each_version_has_its_rows_by_split_and_class(
    shared_ingestion: Running, by: api.SplitBy.ValueType
) -> None:
    ingestion, process = shared_ingestion
    split = api.Split(train=0.5, validation=0.25, test=0.25, by=by)
    request = api.ApplyDatasetRequest(name=ingestion.dataset, schema=ingestion.schema(), split=split)
    async with ingestion.stub(process) as stub:
        assert (await stub.ApplyDataset(request)).split == split
        # Nothing changed.
        assert (await stub.ApplyDataset(request)).schema_version == 1
        request.split.test = 0.5
        with pytest.raises(InvalidArgument) as refused:
            await stub.ApplyDataset(request)
    assert (refused.value.reason, refused.value.fields[0].field) == ("INVALID_SPLIT", "split")
    times = {number: f"2026-01-{1 + number // 10:02}T00:00:00Z" for number in range(120)}
    await publish(ingestion, range(80), times)
    await eventually(ingestion.rows, lambda rows: len(rows) == 80)
    async with ingestion.stub(process) as stub:
        await stub.CommitVersion(api.CommitVersionRequest(dataset=ingestion.dataset))
    await publish(ingestion, range(80, 120), times)
    rows = await eventually(ingestion.rows, lambda rows: len(rows) == 120)
    async with ingestion.stub(process) as stub:
        version = await stub.CommitVersion(api.CommitVersionRequest(dataset=ingestion.dataset))
        assert version == await stub.GetVersion(api.GetVersionRequest(dataset=ingestion.dataset, version=2))
    counts = version.split_counts
    assert counts.split == split
    if by == api.SPLIT_BY_TIME:
        # Ten rows of each day: six days, three, three.
        assert [count.row_count for count in counts.counts] == [60, 30, 30]
        assert [[item.row_count for item in count.classes] for count in counts.counts] == [
            [30, 30],
            [15, 15],
            [15, 15],
        ]
        assert counts.validation_begin_time.ToDatetime() == datetime(2026, 1, 7)  # noqa: DTZ001 - as it is
        assert counts.test_begin_time.ToDatetime() == datetime(2026, 1, 10)  # noqa: DTZ001 - as it is
    else:
        chosen = splits.assign(pa.array([row["id"] for row in rows]), splits.Shares(0.5, 0.25, 0.25)).tolist()
        found = [
            (count.row_count, {item.value: item.row_count for item in count.classes})
            for count in counts.counts
        ]
        labels = [[row["malignant"] for row, n in zip(rows, chosen, strict=True) if n == k] for k in range(3)]
        assert found == [(len(group), {"0": group.count(0), "1": group.count(1)}) for group in labels]


async def test_a_version_from_before_profiles_has_none_and_the_next_has_one_of_all_rows(
    shared_ingestion: Running,
) -> None:
    ingestion, process = shared_ingestion
    await ingestion.apply(process)
    await cut(ingestion, process, range(10))
    connection = await asyncpg.connect(ingestion.dsn, server_settings={"search_path": "ingestion"})
    try:
        await connection.execute("delete from version_profiles where dataset = $1", ingestion.dataset)
    finally:
        await connection.close()
    await cut(ingestion, process, range(10, 15))
    async with ingestion.version_stub(process) as stub:
        with pytest.raises(FailedPrecondition) as caught:
            await stub.GetProfile(versions.GetProfileRequest(dataset=ingestion.dataset, version=number(1)))
        assert caught.value.reason == "NO_PROFILE"
        profile = await stub.GetProfile(
            versions.GetProfileRequest(dataset=ingestion.dataset, version=number(2))
        )
    assert profile.row_count == 15
    assert [field.count + field.null_count for field in profile.fields] == [15] * 4


async def test_a_tag_names_one_version_and_moves_only_by_force(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    await ingestion.apply(process)
    for start in (0, 3):
        await cut(ingestion, process, range(start, start + 3))
    name = ingestion.dataset
    async with ingestion.version_stub(process) as stub, ingestion.stub(process) as datasets:
        tagged = await stub.TagVersion(
            versions.TagVersionRequest(dataset=name, version=number(1), tag="golden")
        )
        assert list(tagged.tags) == ["golden"]
        again = versions.TagVersionRequest(dataset=name, version=number(1), tag="golden")
        assert await stub.TagVersion(again) == tagged
        with pytest.raises(AlreadyExists) as taken:
            await stub.TagVersion(versions.TagVersionRequest(dataset=name, version=number(2), tag="golden"))
        assert taken.value.reason == "TAG_TAKEN"
        assert (await datasets.GetVersion(api.GetVersionRequest(dataset=name, tag="golden"))).version == 1
        forced = versions.TagVersionRequest(dataset=name, version=number(2), tag="golden", force=True)
        assert (await stub.TagVersion(forced)).version == 2
        assert (await datasets.GetVersion(api.GetVersionRequest(dataset=name, tag="golden"))).version == 2
        await stub.TagVersion(versions.TagVersionRequest(dataset=name, version=tag("golden"), tag="best"))
        listed = await datasets.ListVersions(api.ListVersionsRequest(dataset=name))
        assert [list(version.tags) for version in listed.versions] == [["best", "golden"], []]
        await stub.UntagVersion(versions.UntagVersionRequest(dataset=name, tag="golden"))
        for call in (
            stub.UntagVersion(versions.UntagVersionRequest(dataset=name, tag="golden")),
            stub.GetProfile(versions.GetProfileRequest(dataset=name, version=tag("golden"))),
            datasets.GetVersion(api.GetVersionRequest(dataset=name, tag="golden")),
        ):
            with pytest.raises(NotFound) as gone:
                await call
            assert gone.value.reason == "TAG_NOT_FOUND"
        for both in (
            api.GetVersionRequest(dataset=name, tag="best", version=1),
            api.GetVersionRequest(dataset=name),
        ):
            with pytest.raises(InvalidArgument) as unnamed:
                await datasets.GetVersion(both)
            assert unnamed.value.reason == "VERSION_NOT_NAMED"


async def test_a_pin_stays_until_it_is_taken_away(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    await ingestion.apply(process)
    for start in (0, 3):
        await cut(ingestion, process, range(start, start + 3))
    name = ingestion.dataset
    async with ingestion.version_stub(process) as stub:
        assert (await stub.PinVersion(versions.PinVersionRequest(dataset=name, version=number(1)))).pinned
        assert (await stub.PinVersion(versions.PinVersionRequest(dataset=name, version=number(1)))).pinned
        async with connect(ingestion.dsn, schema="ingestion", application_name="test") as pool:
            catalogue = PostgresCatalogue(pool)
            assert [version.version for version in await catalogue.pinned_versions(name)] == [1]
        unpinned = await stub.UnpinVersion(versions.UnpinVersionRequest(dataset=name, version=number(1)))
        assert not unpinned.pinned
        with pytest.raises(NotFound) as missing:
            await stub.PinVersion(versions.PinVersionRequest(dataset=name, version=number(9)))
        assert missing.value.reason == "DATASET_VERSION_NOT_FOUND"
        with pytest.raises(NotFound) as unknown:
            await stub.PinVersion(versions.PinVersionRequest(dataset="nowhere", version=number(1)))
        assert unknown.value.reason == "DATASET_NOT_FOUND"


async def test_a_version_is_read_as_it_was(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    await ingestion.apply(process)
    await cut(ingestion, process, range(20))
    await cut(ingestion, process, range(20, 30))
    async with ingestion.version_stub(process) as stub:
        answers = [
            answer
            async for answer in stub.ReadVersion(
                versions.ReadVersionRequest(dataset=ingestion.dataset, version=number(1))
            )
        ]
    assert {answer.row_count for answer in answers} == {20}
    tables = [pa.ipc.open_stream(answer.arrow_stream).read_all() for answer in answers]
    rows = pa.concat_tables(tables)
    assert rows.column_names == ["id", "radius", "grade", "malignant"]
    assert sorted(rows.column("radius").to_pylist()) == [n / 2 for n in range(20)]


async def replay(
    ingestion: Ingestion, process: Process, name: versions.VersionName
) -> versions.ReplayVersionResponse:
    async with ingestion.version_stub(process) as stub:
        request = versions.ReplayVersionRequest(dataset=ingestion.dataset, version=name)
        answers = [answer async for answer in stub.ReplayVersion(request)]
    assert [answer.HasField("result") for answer in answers] == [False] * (len(answers) - 1) + [True]
    return answers[-1]


async def test_a_replay_makes_the_same_hash_whatever_else_is_on_the_topic(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    await ingestion.apply(process)
    broken = ingestion.headers(f"{ingestion.dataset}-broken")
    elsewhere = ingestion.headers("other", ce_subject=f"{ingestion.dataset}-other")
    await ingestion.publish([(b"p1", b"{", broken), (b"p2", sample(2), elsewhere)])
    first = await cut(ingestion, process, range(50))
    # Sent again by its producer, as another sample under the same id.
    again = ingestion.headers(f"{ingestion.dataset}-7")
    await ingestion.publish([(b"p7", sample(8), again)])
    # By the schema of later, the rejected event is no better, and an older row has one column less.
    wider = ingestion.schema()
    wider.features.add(name="site", type=api.FIELD_TYPE_STRING, nullable=True)
    async with ingestion.stub(process) as stub:
        await stub.ApplyDataset(api.ApplyDatasetRequest(name=ingestion.dataset, schema=wider))
    second = await cut(ingestion, process, range(50, 80))
    for version, count in ((first, 50), (second, 80)):
        replayed = await replay(ingestion, process, number(version.version))
        assert (replayed.row_count, replayed.replayed_count) == (count, count)
        assert replayed.result.content_hash == version.content_hash
        assert replayed.result.same
    assert len(await ingestion.rows()) == 80


async def test_a_replay_by_another_schema_does_not_say_that_the_data_differs(
    shared_ingestion: Running,
) -> None:
    ingestion, process = shared_ingestion
    await ingestion.apply(process)
    # 0.1 is no float32.
    tenth = json.dumps({"id": "p0", "radius": 0.1, "malignant": 1}).encode()
    await ingestion.publish([(b"p0", tenth, ingestion.headers(f"{ingestion.dataset}-tenth"))])
    await eventually(ingestion.rows, lambda rows: len(rows) == 1)
    first = await cut(ingestion, process, range(1, 4))
    assert (await replay(ingestion, process, number(first.version))).result.same
    wider = ingestion.schema()
    wider.features[0].type = api.FIELD_TYPE_FLOAT64
    async with ingestion.stub(process) as stub:
        await stub.ApplyDataset(api.ApplyDatasetRequest(name=ingestion.dataset, schema=wider))
        wider.features[0].unit = "mm"
        await stub.ApplyDataset(api.ApplyDatasetRequest(name=ingestion.dataset, schema=wider))
    # Cut by the schema of today, with rows of before.
    second = await cut(ingestion, process, range(4, 6))
    assert (await replay(ingestion, process, number(first.version))).result.same
    with pytest.raises(FailedPrecondition) as caught:
        await replay(ingestion, process, number(second.version))
    assert caught.value.reason == "SCHEMA_CHANGED"


async def test_a_version_that_breaks_a_rule_is_told_of_with_the_reason(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    rule = quality_pb2.QualityRule
    rules = [
        rule(null_share=rule.NullShare(field="grade", max=0.3), action=quality_pb2.QUALITY_ACTION_BLOCK),
        rule(range=rule.Range(field="radius", max=20), action=quality_pb2.QUALITY_ACTION_WARN),
        rule(
            drift=rule.Drift(method=quality_pb2.DRIFT_METHOD_PSI, max=0.2),
            action=quality_pb2.QUALITY_ACTION_BLOCK,
        ),
    ]
    async with ingestion.stub(process) as stub:
        request = api.ApplyDatasetRequest(name=ingestion.dataset, schema=ingestion.schema(), quality=rules)
        assert list((await stub.ApplyDataset(request)).quality) == rules
        senseless = rule(
            null_share=rule.NullShare(field="nothing", max=0.3), action=quality_pb2.QUALITY_ACTION_WARN
        )
        with pytest.raises(InvalidArgument) as invalid:
            await stub.ApplyDataset(
                api.ApplyDatasetRequest(
                    name=ingestion.dataset, schema=ingestion.schema(), quality=[senseless]
                )
            )
        assert invalid.value.reason == "INVALID_QUALITY"
        assert [violation.field for violation in invalid.value.fields] == ["quality[0].field"]
    first = await cut(ingestion, process, range(40))
    assert first.verdict == quality_pb2.VERDICT_PASS
    second = await cut(ingestion, process, range(1000, 1040))
    assert second.verdict == quality_pb2.VERDICT_BLOCK
    assert [(finding.rule, finding.field) for finding in second.findings] == [
        ("null_share", "grade"),
        ("range", "radius"),
        ("drift", "radius"),
    ]
    assert [finding.verdict for finding in second.findings] == [
        quality_pb2.VERDICT_PASS,
        quality_pb2.VERDICT_WARN,
        quality_pb2.VERDICT_BLOCK,
    ]
    assert second.findings[1].value == 519.5
    events = await ingestion.published(topics.DATASET_VERSIONS, 2)
    told = [events_pb2.DatasetVersionCommitted.FromString(value).dataset_version for _, value in events]
    assert [version.verdict for version in told] == [first.verdict, second.verdict]
    assert told[1].findings == second.findings
