"""What becomes of rejected events: replayed once, discarded, alerted about."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord
from tests.support.ingestion import Headers, Ingestion, Process, Running
from tests.support.services import until_outbox_empty
from tests.support.waiting import PATIENCE_SECONDS, eventually

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from headrace.events.ingestion.v1 import events_pb2
from headrace.messaging import topics

pytestmark = pytest.mark.broker

# What is tested here is rejected on purpose.
NO_ALERT = api.Rejects(alert_share=1)
QUICK = {"HEADRACE_INGESTION_REJECT_WATCH_SECONDS": "0.2", "HEADRACE_INGESTION_SWEEP_SECONDS": "0.5"}


def sample(**changes: object) -> bytes:
    return json.dumps({"id": "p1", "radius": 1.5, "grade": 3, "malignant": 1, **changes}).encode()


def good(ingestion: Ingestion, number: int) -> tuple[bytes, bytes, Headers]:
    return b"p1", sample(id=f"p{number}"), ingestion.headers(f"{ingestion.dataset}-{number:06}")


def bad(ingestion: Ingestion, number: int = 0, **changes: str | None) -> tuple[bytes, bytes, Headers]:
    event_id = f"{ingestion.dataset}-bad-{number:06}"
    # A key of any bytes, as many producers have it.
    return b"\xff\x00", sample(radius=-1), ingestion.headers(event_id, **changes)


async def rejected(ingestion: Ingestion, process: Process, count: int = 1) -> list[api.RejectedSample]:
    """Oldest first."""
    return await eventually(lambda: ingestion.rejected(process), lambda found: len(found) >= count)


async def declare(
    ingestion: Ingestion,
    process: Process,
    *,
    relaxed: bool = False,
    cut_rows: int = 0,
    rejects: api.Rejects = NO_ALERT,
) -> None:
    """Apply the dataset; relaxed, a radius may be negative."""
    schema = ingestion.schema()
    if relaxed:
        schema.features[0].ClearField("min")
    async with ingestion.stub(process) as stub:
        await stub.ApplyDataset(
            api.ApplyDatasetRequest(
                name=ingestion.dataset, schema=schema, cut=api.Cut(rows=cut_rows), rejects=rejects
            )
        )


async def replay(ingestion: Ingestion, process: Process, *ids: int, **correction: object) -> int:
    request = api.ReplayRejectedRequest(ids=ids)
    if correction:
        request.correction.CopyFrom(api.Correction(**correction))  # type: ignore[arg-type]
    async with ingestion.stub(process) as stub:
        return (await stub.ReplayRejected(request)).replayed_count


async def get(ingestion: Ingestion, process: Process, entry: int) -> api.RejectedSample:
    async with ingestion.stub(process) as stub:
        return await stub.GetRejected(api.GetRejectedRequest(id=entry))


async def replayed_record(ingestion: Ingestion, entry: api.RejectedSample) -> ConsumerRecord[bytes, bytes]:
    """The record on the samples topic that is the entry's replay."""
    consumer = AIOKafkaConsumer(
        topics.SAMPLES, bootstrap_servers=ingestion.bootstrap, auto_offset_reset="earliest", group_id=None
    )
    async with consumer, asyncio.timeout(PATIENCE_SECONDS):
        while True:
            record = await consumer.getone()
            headers = dict(record.headers)
            if headers.get("ce_id", b"").decode() == entry.event_id and "ce_replayof" in headers:
                return record


async def test_a_replay_after_the_schema_was_relaxed_stores_one_row(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    await declare(ingestion, process)
    await ingestion.publish([bad(ingestion)])
    [entry] = await rejected(ingestion, process)
    assert entry.state == api.REJECTED_STATE_PENDING
    assert not entry.HasField("resolve_time")
    await declare(ingestion, process, relaxed=True)
    assert await replay(ingestion, process, entry.id) == 1
    [row] = await eventually(ingestion.rows, bool)
    assert (row["radius"], row["_event_id"]) == (-1, entry.event_id)

    with pytest.raises(FailedPrecondition, match=f"rejected event {entry.id} was replayed at") as twice:
        await replay(ingestion, process, entry.id)
    assert twice.value.reason == "NOT_PENDING"
    kept = await get(ingestion, process, entry.id)
    assert kept.state == api.REJECTED_STATE_REPLAYED
    assert kept.HasField("resolve_time")
    kept.state = entry.state
    kept.ClearField("resolve_time")
    assert kept == entry
    sent = await replayed_record(ingestion, entry)
    assert dict(sent.headers) == {**entry.headers, "ce_replayof": str(entry.id).encode()}
    assert (sent.key, sent.value) == (entry.key, entry.payload)
    await until_outbox_empty(ingestion.dsn, "ingestion")
    await ingestion.caught_up(process)
    assert len(await ingestion.rows()) == 1
    assert len(await ingestion.rejected(process)) == 1


async def test_a_corrected_replay_is_judged_by_what_was_corrected(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    await declare(ingestion, process)
    elsewhere = f"{ingestion.dataset}-nowhere"
    await ingestion.publish([bad(ingestion, 1, ce_subject=elsewhere), bad(ingestion, 2, ce_id=None)])
    found = await rejected(ingestion, process, 2)
    lost = next(entry for entry in found if entry.dataset == elsewhere)
    nameless = next(entry for entry in found if entry.dataset != elsewhere)
    with pytest.raises(NotFound) as unknown:
        await replay(ingestion, process, lost.id, attributes={"subject": f"{elsewhere}-again"})
    assert unknown.value.reason == "DATASET_NOT_FOUND"
    corrected = {"payload": sample(id="p7"), "attributes": {"subject": ingestion.dataset}}
    assert await replay(ingestion, process, lost.id, **corrected) == 1
    assert await replay(ingestion, process, nameless.id, payload=sample(id="p8")) == 1
    rows = await eventually(ingestion.rows, lambda rows: len(rows) == 2)
    place = f"{nameless.topic}/{nameless.partition}/{nameless.offset}"
    ids = {row["id"]: str(row["_event_id"]) for row in rows}
    assert ids["p7"] == lost.event_id
    assert ids["p8"].endswith(f"/{place}")
    assert (await get(ingestion, process, lost.id)).payload == lost.payload


async def test_a_structured_event_is_corrected_like_others(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    await declare(ingestion, process)
    elsewhere = f"{ingestion.dataset}-nowhere"
    envelope = {
        "specversion": "1.0",
        "id": f"{ingestion.dataset}-structured",
        "source": "tests",
        "type": "headrace.ingestion.sample.v1",
        "subject": elsewhere,
        "data": json.loads(sample()),
    }
    headers = [("content-type", b"application/cloudevents+json")]
    unread = [("ce_id", f"{ingestion.dataset}-unread".encode()), *headers]
    await ingestion.publish([(b"p1", json.dumps(envelope).encode(), headers), (b"p1", b"{", unread)])
    found = await rejected(ingestion, process, 2)
    lost = next(entry for entry in found if entry.dataset == elsewhere)
    broken = next(entry for entry in found if entry.dataset != elsewhere)
    correct = {"attributes": {"subject": ingestion.dataset}}
    with pytest.raises(InvalidArgument, match="a whole structured event") as refused:
        await replay(ingestion, process, broken.id, **correct)
    assert refused.value.reason == "INVALID_CORRECTION"
    assert (await get(ingestion, process, broken.id)).state == api.REJECTED_STATE_PENDING
    assert await replay(ingestion, process, lost.id, **correct) == 1
    [row] = await eventually(ingestion.rows, bool)
    assert (row["id"], row["_event_id"]) == ("p1", envelope["id"])


async def test_a_replay_that_is_rejected_again_refers_to_the_one_it_came_from(
    shared_ingestion: Running,
) -> None:
    ingestion, process = shared_ingestion
    await declare(ingestion, process)
    await ingestion.publish([bad(ingestion)])
    [first] = await rejected(ingestion, process)
    await replay(ingestion, process, first.id)
    _, second = await rejected(ingestion, process, 2)
    assert (second.replay_of, second.state) == (first.id, api.REJECTED_STATE_PENDING)
    assert (second.event_id, second.payload) == (first.event_id, first.payload)
    assert (second.partition, second.offset) != (first.partition, first.offset)
    await replay(ingestion, process, second.id)
    *_, third = await rejected(ingestion, process, 3)
    assert third.replay_of == second.id
    # Consumers of the topic see the same.
    events = await ingestion.published(topics.REJECTED_SAMPLES, 3)
    told = [events_pb2.SampleRejected.FromString(value).rejected for _, value in events]
    assert sorted((event.id, event.replay_of) for event in told) == [
        (first.id, 0),
        (second.id, first.id),
        (third.id, second.id),
    ]


async def test_rejected_events_are_counted_when_they_are_stored(ingestion: Ingestion) -> None:
    process = await ingestion.start_ready()
    await declare(ingestion, process)
    await ingestion.publish([bad(ingestion, number) for number in range(3)])
    await rejected(ingestion, process, 3)
    [first, *_] = await ingestion.rejected(process)
    await replay(ingestion, process, first.id)
    await rejected(ingestion, process, 4)
    connection = await asyncpg.connect(ingestion.dsn, server_settings={"search_path": "ingestion"})
    try:
        async with connection.transaction():
            # However many there are, they are not looked at.
            await connection.execute("lock table rejected_samples in access exclusive mode")
            async with asyncio.timeout(PATIENCE_SECONDS):
                assert (await described(ingestion, process)).rejected_count == 4
        assert await process.stop() == 0
        # As the release before left it.
        await connection.execute(
            "drop trigger count_rejected on rejected_samples; drop function count_rejected; "
            "drop table rejected_counts; delete from schema_migrations where name like '%rejected_counts.sql'"
        )
    finally:
        await connection.close()
    later = await ingestion.start_ready()
    assert (await described(ingestion, later)).rejected_count == 4
    await ingestion.publish([bad(ingestion, 4)])
    await rejected(ingestion, later, 5)
    assert (await described(ingestion, later)).rejected_count == 5


async def test_an_event_that_only_says_that_it_is_a_replay_is_rejected_like_others(
    shared_ingestion: Running,
) -> None:
    ingestion, process = shared_ingestion
    await declare(ingestion, process)
    await ingestion.publish([bad(ingestion, 0)])
    [first] = await rejected(ingestion, process)
    claims = [str(first.id), "999999999", "x"] * 2
    await ingestion.publish(
        [bad(ingestion, 1 + number, ce_replayof=claim) for number, claim in enumerate(claims)]
    )
    assert len(await rejected(ingestion, process, 7)) == 7
    # An entry that was replayed has one replay, and it is the one with its id.
    await replay(ingestion, process, first.id)
    await rejected(ingestion, process, 8)
    await ingestion.publish([bad(ingestion, 20 + number, ce_replayof=str(first.id)) for number in range(2)])
    found = await rejected(ingestion, process, 10)
    assert Counter(entry.replay_of for entry in found) == {0: 9, first.id: 1}


async def test_all_that_wait_are_replayed_once(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    await declare(ingestion, process)
    # More than a page.
    count = 600
    broken = (b"p1", b"{", ingestion.headers(f"{ingestion.dataset}-broken"))
    await ingestion.publish([*(bad(ingestion, number) for number in range(count)), broken])
    await rejected(ingestion, process, count + 1)
    await declare(ingestion, process, relaxed=True)
    replayed, calls = 0, 0
    request = api.ReplayRejectedRequest(
        filter=api.RejectedFilter(dataset=ingestion.dataset, reason="SCHEMA_VIOLATION")
    )
    async with ingestion.stub(process) as stub:
        while not calls or request.page_token:
            answer = await stub.ReplayRejected(request)
            replayed += answer.replayed_count
            request.page_token = answer.next_page_token
            calls += 1
        assert replayed == count
        assert calls > 1
        wanted = api.ListRejectedRequest(dataset=ingestion.dataset, state=api.REJECTED_STATE_PENDING)
        assert [entry.reason for entry in (await stub.ListRejected(wanted)).rejected] == ["MALFORMED_PAYLOAD"]
        by_reason = api.ListRejectedRequest(dataset=ingestion.dataset, reason="MALFORMED_PAYLOAD")
        assert len((await stub.ListRejected(by_reason)).rejected) == 1
    rows = await eventually(ingestion.rows, lambda rows: len(rows) >= count)
    assert Counter(str(row["_event_id"]) for row in rows).most_common(1)[0][1] == 1
    assert len(rows) == count


async def test_what_is_rejected_again_meanwhile_is_not_replayed_again(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    await declare(ingestion, process)
    await ingestion.publish([bad(ingestion, number) for number in range(2)])
    await rejected(ingestion, process, 2)
    request = api.ReplayRejectedRequest(filter=api.RejectedFilter(dataset=ingestion.dataset))
    async with ingestion.stub(process) as stub:
        answer = await stub.ReplayRejected(request)
        assert answer.replayed_count == 2
        await rejected(ingestion, process, 4)
        request.page_token = answer.next_page_token
        answer = await stub.ReplayRejected(request)
        assert (answer.replayed_count, answer.next_page_token) == (0, "")


async def test_a_discarded_event_stays_and_says_why(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    await declare(ingestion, process)
    await ingestion.publish([bad(ingestion, number) for number in range(3)])
    first, second, third = await rejected(ingestion, process, 3)
    async with ingestion.stub(process) as stub:
        with pytest.raises(NotFound) as missing:
            await stub.DiscardRejected(api.DiscardRejectedRequest(ids=[first.id, 10**9], reason="no"))
        assert missing.value.reason == "REJECTED_NOT_FOUND"
        assert (await get(ingestion, process, first.id)).state == api.REJECTED_STATE_PENDING
        one = api.DiscardRejectedRequest(ids=[first.id], reason="a test of the sensor")
        assert (await stub.DiscardRejected(one)).discarded_count == 1
        with pytest.raises(FailedPrecondition) as twice:
            await stub.DiscardRejected(one)
        assert twice.value.reason == "NOT_PENDING"
        with pytest.raises(FailedPrecondition) as gone:
            await replay(ingestion, process, second.id, first.id)
        assert gone.value.reason == "NOT_PENDING"
        rest = api.DiscardRejectedRequest(
            filter=api.RejectedFilter(dataset=ingestion.dataset), reason="the rest of it"
        )
        assert (await stub.DiscardRejected(rest)).discarded_count == 2
    kept = await ingestion.rejected(process)
    assert [entry.discard_reason for entry in kept] == ["a test of the sensor", *["the rest of it"] * 2]
    assert {entry.state for entry in kept} == {api.REJECTED_STATE_DISCARDED}
    assert kept[2].payload == third.payload


async def test_an_event_that_is_too_large_to_be_replayed_is_told(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    await declare(ingestion, process)
    key, _, headers = bad(ingestion)
    # Small enough for ingestion, and too large for what publishes for it.
    await ingestion.publish([(key, sample(radius=-1, id="x" * 1_000_000), headers), bad(ingestion, 1)])
    large, small = sorted(await rejected(ingestion, process, 2), key=lambda entry: -len(entry.payload))
    assert large.reason == "SCHEMA_VIOLATION"
    with pytest.raises(FailedPrecondition) as refused:
        await replay(ingestion, process, small.id, large.id)
    assert refused.value.reason == "REPLAY_OVERSIZE"
    assert (await get(ingestion, process, small.id)).state == api.REJECTED_STATE_PENDING
    async with ingestion.stub(process) as stub:
        request = api.ReplayRejectedRequest(filter=api.RejectedFilter(dataset=ingestion.dataset))
        answer = await stub.ReplayRejected(request)
    assert (answer.replayed_count, list(answer.oversize_ids)) == (1, [large.id])
    assert (await get(ingestion, process, large.id)).state == api.REJECTED_STATE_PENDING
    assert await replay(ingestion, process, large.id, payload=sample()) == 1
    assert len(await eventually(ingestion.rows, bool)) == 1


async def test_a_selection_or_a_correction_that_means_nothing_is_refused(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    correction = api.Correction(payload=b"{}")
    async with ingestion.stub(process) as stub:
        calls = {
            "INVALID_SELECTION": [
                stub.ReplayRejected(api.ReplayRejectedRequest()),
                stub.ReplayRejected(api.ReplayRejectedRequest(filter=api.RejectedFilter())),
                stub.DiscardRejected(
                    api.DiscardRejectedRequest(ids=[1], filter=api.RejectedFilter(dataset="d"), reason="no")
                ),
            ],
            "INVALID_CORRECTION": [
                stub.ReplayRejected(api.ReplayRejectedRequest(ids=[1, 2], correction=correction)),
                stub.ReplayRejected(
                    api.ReplayRejectedRequest(filter=api.RejectedFilter(dataset="d"), correction=correction)
                ),
            ],
            "INVALID_REQUEST": [
                stub.GetRejected(api.GetRejectedRequest()),
                stub.DiscardRejected(api.DiscardRejectedRequest(ids=[1])),
                stub.ReplayRejected(
                    api.ReplayRejectedRequest(ids=[1], correction=api.Correction(attributes={"id": "e"}))
                ),
            ],
        }
        for reason, attempts in calls.items():
            for attempt in attempts:
                with pytest.raises(InvalidArgument) as caught:
                    await attempt
                assert caught.value.reason == reason
        with pytest.raises(NotFound) as missing:
            await stub.GetRejected(api.GetRejectedRequest(id=1_000_000_000))
        assert missing.value.reason == "REJECTED_NOT_FOUND"


@pytest.mark.kill
@pytest.mark.parametrize(
    "fault", ["ingestion.after-replay-commit", "outbox.before-publish", "outbox.after-publish"]
)
@pytest.mark.parametrize("relaxed", [True, False], ids=["stored", "rejected-again"])
async def test_a_kill_in_the_middle_of_a_replay_loses_nothing_and_doubles_nothing(
    ingestion: Ingestion, tmp_path: Path, fault: str, relaxed: bool
) -> None:
    before = await ingestion.start_ready()
    await declare(ingestion, before)
    await ingestion.publish([bad(ingestion)])
    [entry] = await rejected(ingestion, before)
    if relaxed:
        await declare(ingestion, before, relaxed=True)
    await ingestion.caught_up(before)
    await until_outbox_empty(ingestion.dsn, "ingestion")
    assert await before.stop() == 0

    environment = {"HEADRACE_FAULT": fault, "HEADRACE_FAULT_ONCE": str(tmp_path / "died-once")}
    doomed = await ingestion.start_ready(**environment)
    # It dies before it answers, or before the answer has arrived and the call is sent again.
    with suppress(Unavailable, FailedPrecondition):
        await replay(ingestion, doomed, entry.id)
    await doomed.killed()

    again = await ingestion.start_ready(**environment)
    if relaxed:
        assert len(await eventually(ingestion.rows, bool)) == 1
    else:
        await rejected(ingestion, again, 2)
    # Whatever was published twice has been read after this.
    await until_outbox_empty(ingestion.dsn, "ingestion")
    await ingestion.caught_up(again)
    entries = await ingestion.rejected(again)
    assert [found.replay_of for found in entries] == ([0] if relaxed else [0, entry.id])
    assert entries[0].state == api.REJECTED_STATE_REPLAYED
    assert len(await ingestion.rows()) == relaxed
    assert await again.stop() == 0


async def alerts(
    ingestion: Ingestion, count: int
) -> list[events_pb2.RejectShareExceeded | events_pb2.RejectShareRecovered]:
    kinds = {
        b"headrace.ingestion.reject-share-exceeded.v1": events_pb2.RejectShareExceeded,
        b"headrace.ingestion.reject-share-recovered.v1": events_pb2.RejectShareRecovered,
    }
    found = await ingestion.published(topics.INGESTION_ALERTS, count)
    # A crash between publishing and forgetting publishes again, with the same id.
    once = {headers["ce_id"]: (headers["ce_type"], value) for headers, value in found}
    return [kinds[kind].FromString(value) for kind, value in once.values()]


async def described(ingestion: Ingestion, process: Process) -> api.Dataset:
    async with ingestion.stub(process) as stub:
        return await stub.GetDataset(api.GetDatasetRequest(name=ingestion.dataset))


@pytest.mark.kill
async def test_an_alert_begins_once_and_ends_once_whoever_dies(ingestion: Ingestion, tmp_path: Path) -> None:
    doomed = await ingestion.start_ready(
        **QUICK,
        HEADRACE_FAULT="ingestion.after-alert-commit",
        HEADRACE_FAULT_ONCE=str(tmp_path / "died-once"),
    )
    await declare(ingestion, doomed, rejects=api.Rejects())
    await ingestion.publish([bad(ingestion), *(good(ingestion, number) for number in range(3))])
    await doomed.killed()

    process = await ingestion.start_ready(**QUICK)
    other = await ingestion.start_ready(**QUICK)
    [exceeded] = await alerts(ingestion, 1)
    assert isinstance(exceeded, events_pb2.RejectShareExceeded)
    assert (exceeded.dataset, exceeded.reject_share.rejected_count) == (ingestion.dataset, 1)
    assert exceeded.reject_share.alert_share == 0.05
    assert not exceeded.cut_held
    dataset = await described(ingestion, process)
    assert dataset.reject_alert_time == exceeded.begin_time

    [entry] = await ingestion.rejected(process)
    async with ingestion.stub(process) as stub:
        await stub.DiscardRejected(api.DiscardRejectedRequest(ids=[entry.id], reason="a test"))
    _, recovered = await alerts(ingestion, 2)
    assert isinstance(recovered, events_pb2.RejectShareRecovered)
    assert recovered.episode == exceeded.episode
    assert recovered.begin_time == exceeded.begin_time
    assert not (await described(ingestion, process)).HasField("reject_alert_time")
    await until_outbox_empty(ingestion.dsn, "ingestion")
    assert len(await alerts(ingestion, 2)) == 2
    assert await process.stop() == 0
    assert await other.stop() == 0


async def test_a_cut_is_held_until_the_rejected_events_were_replayed(ingestion: Ingestion) -> None:
    process = await ingestion.start_ready(**QUICK)
    await declare(ingestion, process)
    await ingestion.publish([bad(ingestion), *(good(ingestion, number) for number in range(4))])
    [entry] = await rejected(ingestion, process)
    await eventually(ingestion.rows, lambda rows: len(rows) == 4)
    # Due from here on, and held.
    await declare(ingestion, process, cut_rows=4, rejects=api.Rejects(alert_share=0.1, hold_cut=True))
    assert (await described(ingestion, process)).cut_held
    [exceeded] = await alerts(ingestion, 1)
    assert isinstance(exceeded, events_pb2.RejectShareExceeded)
    assert exceeded.cut_held
    assert await ingestion.versions(process) == []
    await replay(ingestion, process, entry.id, payload=sample(id="p9"))
    [version] = await eventually(lambda: ingestion.versions(process), bool)
    assert version.row_count in (4, 5)
    assert not (await described(ingestion, process)).cut_held
    _, recovered = await alerts(ingestion, 2)
    assert isinstance(recovered, events_pb2.RejectShareRecovered)


async def test_a_held_cut_is_made_by_whoever_asks_for_it(ingestion: Ingestion) -> None:
    process = await ingestion.start_ready(**QUICK)
    await declare(ingestion, process, cut_rows=1, rejects=api.Rejects(hold_cut=True))
    await ingestion.publish([bad(ingestion)])
    await rejected(ingestion, process)
    await ingestion.publish([good(ingestion, 0)])
    await eventually(lambda: described(ingestion, process), lambda found: found.cut_held)
    async with ingestion.stub(process) as stub:
        version = await stub.CommitVersion(api.CommitVersionRequest(dataset=ingestion.dataset))
    assert version.row_count == 1


async def test_what_a_dataset_says_of_rejected_events_is_kept_and_checked(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    await declare(ingestion, process, rejects=api.Rejects())
    rejects = (await described(ingestion, process)).rejects
    assert (rejects.alert_share, rejects.window.seconds, rejects.hold_cut) == (0.05, 600, False)
    rejects = api.Rejects(alert_share=0, hold_cut=True)
    rejects.window.FromSeconds(60)
    await declare(ingestion, process, rejects=rejects)
    dataset = await described(ingestion, process)
    assert dataset.rejects == rejects
    # It is no change of the schema.
    assert dataset.schema_version == 1
    with pytest.raises(InvalidArgument) as refused:
        await declare(ingestion, process, rejects=api.Rejects(alert_share=2))
    assert refused.value.reason == "INVALID_REQUEST"
