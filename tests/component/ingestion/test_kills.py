"""Kill -9 at the worst moments: rows equal valid events, each once; each rejected event once."""

from __future__ import annotations

import json
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import deltalake
import pyarrow as pa
import pytest
from tests.support.ingestion import Headers, Ingestion, Process
from tests.support.services import until_outbox_empty
from tests.support.waiting import eventually

from headrace.events.ingestion.v1 import events_pb2
from headrace.ingestion.domain.content_hash import hash_rows, to_hex
from headrace.messaging import topics

pytestmark = [pytest.mark.broker, pytest.mark.kill]

EVENTS = 40
BAD_EVERY = 5
GOOD = EVENTS - EVENTS // BAD_EVERY

Record = tuple[bytes | None, bytes | None, Headers]


def records_of(ingestion: Ingestion) -> list[Record]:
    """Every fifth one broken, in one way or another."""
    records: list[Record] = []
    for number in range(EVENTS):
        row: dict[str, object] = {
            "id": f"p{number}",
            "radius": number / 2,
            "grade": 1,
            "malignant": number % 2,
        }
        if number % BAD_EVERY == 0:
            row["radius"] = -1.0
        payload = json.dumps(row).encode()
        if number % (2 * BAD_EVERY) == 0:
            payload = payload[:-1]
        headers = ingestion.headers(f"{ingestion.dataset}-{number:06}")
        records.append((f"p{number}".encode(), payload, headers))
    return records


async def assert_each_event_is_accounted_for_once(ingestion: Ingestion, process: Process) -> None:
    rows = await eventually(ingestion.rows, lambda rows: len(rows) >= GOOD)
    rejected = await eventually(
        lambda: ingestion.rejected(process), lambda rejected: len(rejected) >= EVENTS - GOOD
    )
    # Each is published, and however often, under one id.
    published = {
        headers["ce_id"]: events_pb2.SampleRejected.FromString(value).rejected
        for headers, value in await ingestion.published(topics.REJECTED_SAMPLES, len(rejected))
    }
    assert sorted(published.values(), key=lambda item: item.id) == sorted(rejected, key=lambda item: item.id)
    expected = {f"{ingestion.dataset}-{number:06}" for number in range(EVENTS)}
    found = Counter([str(row["_event_id"]) for row in rows] + [item.event_id for item in rejected])
    assert found == Counter(expected)
    assert len(rows) == GOOD


async def assert_versions_hold_what_they_say(ingestion: Ingestion, process: Process) -> None:
    """The last version has every row, its event is out, and numbers have no gaps."""
    versions = await eventually(
        lambda: ingestion.versions(process),
        lambda versions: bool(versions) and versions[-1].row_count == GOOD,
    )
    assert [version.version for version in versions] == list(range(1, len(versions) + 1))
    for version in versions:
        table = pa.table(
            deltalake.DeltaTable(version.table_uri, version=version.table_version).to_pyarrow_table()
        )
        assert table.num_rows == version.row_count
        assert to_hex(hash_rows(table, ["id", "radius", "grade", "malignant"])) == version.content_hash
    # A crash between publishing and forgetting publishes again, with the same id.
    published = {
        headers["ce_id"]: events_pb2.DatasetVersionCommitted.FromString(value)
        for headers, value in await ingestion.published(topics.DATASET_VERSIONS, len(versions))
    }
    announced = sorted((event.dataset_version for event in published.values()), key=lambda v: v.version)
    assert announced == versions


@pytest.mark.parametrize(
    "fault",
    [
        "ingestion.after-reject-commit",
        "ingestion.after-reject-publish",
        "ingestion.after-delta-commit",
        "ingestion.before-offset-commit",
        "ingestion.after-cut-commit",
        "outbox.before-publish",
        "outbox.after-publish",
    ],
)
async def test_a_kill_loses_nothing_and_doubles_nothing(
    ingestion: Ingestion, tmp_path: Path, fault: str
) -> None:
    environment = {
        "HEADRACE_FAULT": fault,
        "HEADRACE_FAULT_ONCE": str(tmp_path / "died-once"),
        # Several batches, so that the kill is in the middle of the work.
        "HEADRACE_INGESTION_BATCH_EVENTS": "15",
    }
    # What stands in the topic is read first, so that the kill hits this test's own events.
    before = await ingestion.start_ready()
    await ingestion.apply(before, rows=10, seconds=0.5)
    await ingestion.caught_up(before)
    await until_outbox_empty(ingestion.dsn, "ingestion")
    assert await before.stop() == 0

    doomed = await ingestion.start(**environment)
    await ingestion.publish(records_of(ingestion))
    await doomed.killed()

    again = await ingestion.start_ready(**environment)
    await assert_each_event_is_accounted_for_once(ingestion, again)
    await assert_versions_hold_what_they_say(ingestion, again)
    assert await again.stop() == 0


async def test_a_kill_between_two_datasets_of_a_batch_doubles_neither(ingestion: Ingestion) -> None:
    before = await ingestion.start_ready()
    other = replace(ingestion, dataset=f"{ingestion.dataset}-b")
    both = (ingestion, other)
    for each in both:
        await each.apply(before)
    await ingestion.caught_up(before)
    assert await before.stop() == 0

    # All of them wait when it starts, and come in one batch.
    payload = json.dumps({"id": "p", "radius": 1.5, "grade": 1, "malignant": 0}).encode()
    await ingestion.publish(
        [
            (b"p", payload, each.headers(f"{each.dataset}-{number:03}"))
            for number in range(20)
            for each in both
        ]
    )
    doomed = await ingestion.start(HEADRACE_FAULT="ingestion.after-delta-commit")
    await doomed.killed()
    assert sorted([len(await each.rows()) for each in both]) == [0, 20]

    again = await ingestion.start_ready()
    for each in both:
        rows = await eventually(each.rows, lambda rows: len(rows) >= 20)
        assert [row["_event_id"] for row in rows] == [f"{each.dataset}-{number:03}" for number in range(20)]
    assert await again.stop() == 0


@pytest.mark.parametrize("fault", ["ingestion.after-merge-write", "ingestion.after-merge-commit"])
async def test_a_kill_while_files_are_merged_changes_no_row(
    ingestion: Ingestion, tmp_path: Path, fault: str
) -> None:
    environment = {
        "HEADRACE_FAULT": fault,
        "HEADRACE_FAULT_ONCE": str(tmp_path / "died-once"),
        "HEADRACE_INGESTION_MAINTENANCE_SECONDS": "0.1",
        "HEADRACE_INGESTION_MERGE_MIN_FILES": "2",
    }
    doomed = await ingestion.start_ready(**environment)
    await ingestion.apply(doomed, rows=10, seconds=0.5)
    records = records_of(ingestion)
    # A commit for each part, and with the second one there are files to merge.
    await ingestion.publish(records[: EVENTS // 2])
    await eventually(ingestion.rows, bool)
    await ingestion.publish(records[EVENTS // 2 :])
    await doomed.killed()

    again = await ingestion.start_ready(**environment)
    await assert_each_event_is_accounted_for_once(ingestion, again)
    await assert_versions_hold_what_they_say(ingestion, again)
    await eventually(ingestion.files, lambda files: files == 1)
    await assert_versions_hold_what_they_say(ingestion, again)
    assert await again.stop() == 0


async def test_a_service_that_takes_over_at_the_same_time_changes_nothing(ingestion: Ingestion) -> None:
    """Partitions move between two instances while events come in, and one of them is killed."""
    first = await ingestion.start_ready(HEADRACE_INGESTION_BATCH_EVENTS="10")
    await ingestion.apply(first, rows=10, seconds=0.5)
    records = records_of(ingestion)
    await ingestion.publish(records[: EVENTS // 2])
    second = await ingestion.start_ready(HEADRACE_INGESTION_BATCH_EVENTS="10")
    await ingestion.publish(records[EVENTS // 2 :])
    await eventually(ingestion.rows, bool)
    first.process.kill()
    await first.killed()
    await assert_each_event_is_accounted_for_once(ingestion, second)
    await assert_versions_hold_what_they_say(ingestion, second)
    assert await second.stop() == 0


async def test_a_paused_process_that_wakes_after_its_partitions_are_gone_changes_nothing(
    ingestion: Ingestion,
) -> None:
    sleeper = await ingestion.start_ready(HEADRACE_INGESTION_BATCH_EVENTS="10")
    await ingestion.apply(sleeper, rows=10, seconds=0.5)
    records = records_of(ingestion)
    await ingestion.publish(records[: EVENTS // 2])
    await eventually(ingestion.rows, bool)
    sleeper.process.send_signal(signal.SIGSTOP)
    successor = await ingestion.start_ready()
    await ingestion.publish(records[EVENTS // 2 :])
    await eventually(ingestion.rows, lambda rows: len(rows) >= GOOD)
    sleeper.process.send_signal(signal.SIGCONT)
    # It wakes in the middle of its work and ends it: whatever it writes, it has written when it has stopped.
    await eventually(sleeper.is_ready, bool)
    assert await sleeper.stop() == 0
    await assert_each_event_is_accounted_for_once(ingestion, successor)
    await assert_versions_hold_what_they_say(ingestion, successor)
    assert await successor.stop() == 0
