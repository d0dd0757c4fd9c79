"""From alerts of drift to jobs: by the clock over real tables, and once through a service that dies."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.support.scheduling import BLOCKED, TRACEPARENT, Scheduling, a_schema, a_spec, stub_of
from tests.support.waiting import eventually

from headrace.api.inference.v1 import drift_pb2 as drift
from headrace.api.ingestion.v1 import ingestion_pb2
from headrace.api.scheduling.v1 import drift_pb2 as retraining_pb2
from headrace.api.scheduling.v1 import scheduling_pb2 as pb
from headrace.errors import HeadraceError, Unavailable
from headrace.events.inference.v1 import events_pb2
from headrace.messaging import topics
from headrace.messaging.consumer import PermanentFailure
from headrace.messaging.events import Event, protobuf_event
from headrace.postgres import connect
from headrace.postgres.migrations import migrate
from headrace.rpc.convert import to_duration, to_timestamp
from headrace.runtime.ids import new_id
from headrace.scheduling.consumers import EventHandler
from headrace.scheduling.domain.retraining import Reason, Retraining, RetrainingState
from headrace.scheduling.grpc_clients import Targets, connect_peers
from headrace.scheduling.storage.changes import PostgresChanges
from headrace.scheduling.storage.store import PostgresStore
from headrace.scheduling.use_cases.jobs import Jobs
from headrace.scheduling.use_cases.retrain_on_drift import DATA_PAUSE, RetrainOnDrift

HOUR = timedelta(hours=1)
NAME = "tumours"


def alert(episode: str, pipeline: str, *, dataset_version: int = 2, ended: bool = False) -> Event:
    told = drift.DriftEpisode(
        id=episode,
        deployment="live",
        model=pipeline,
        model_version=3,
        dataset=pipeline,
        dataset_version=dataset_version,
        begin_time=to_timestamp(datetime(2026, 1, 2, tzinfo=UTC)),
    )
    return protobuf_event(
        events_pb2.DriftEnded(episode=told) if ended else events_pb2.DriftDetected(episode=told),
        type=f"headrace.inference.drift-{'ended' if ended else 'detected'}.v1",
        source="headrace/inference",
        subject="live",
        id=f"{episode}-ended" if ended else episode,
        time=datetime(2026, 1, 2, tzinfo=UTC),
    )


def wishing(cooldown: timedelta = HOUR, max_per_day: int = 3) -> pb.PipelineSpec:
    return a_spec(
        retrain_on_drift=retraining_pb2.DriftRetraining(
            cooldown=to_duration(cooldown), max_per_day=max_per_day
        )
    )


@dataclass
class Clock:
    now: datetime = datetime(2026, 1, 2, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Data:
    """A dataset whose newest version the test says."""

    version: int = 3
    blocked: bool = False
    error: HeadraceError | None = None

    async def newest_data(self, dataset: str) -> tuple[ingestion_pb2.DatasetVersion, ingestion_pb2.Schema]:
        if self.error is not None:
            raise self.error
        version = ingestion_pb2.DatasetVersion(
            dataset=dataset,
            version=self.version,
            traceparent=TRACEPARENT,
            **(BLOCKED if self.blocked else {}),
        )
        return version, a_schema()


@dataclass
class Alerts:
    """Retraining over a database of the test's own, by the test's clock, with the data that the test says."""

    store: PostgresStore
    jobs: Jobs
    handler: EventHandler
    retraining: RetrainOnDrift
    clock: Clock
    data: Data

    async def apply(self, spec: pb.PipelineSpec) -> None:
        async with self.store.transaction() as transaction:
            await transaction.put_pipeline(NAME, spec, self.clock.now)

    async def told(self, episode: str, *, dataset_version: int = 2, ended: bool = False) -> Retraining:
        """What an alert has led to, once all that wait were looked at."""
        await self.handler.handle(alert(episode, NAME, dataset_version=dataset_version, ended=ended))
        return await self.after(timedelta(0), episode)

    async def after(self, time: timedelta, episode: str) -> Retraining:
        self.clock.now += time
        await self.retraining.look()
        found = {one.episode: one for one in await self.retraining.of_pipeline(NAME)}
        return found[episode]

    async def count(self) -> int:
        return len(await self.jobs.list(NAME, None, 100))


@pytest.fixture
async def alerts(postgres_dsn: str) -> AsyncIterator[Alerts]:
    nowhere = Targets(*["127.0.0.1:1"] * 3)
    async with (
        connect(postgres_dsn, schema="scheduling", application_name="tests") as pool,
        connect_peers(nowhere) as peers,
    ):
        await migrate(pool, "headrace.scheduling.storage")
        clock, data = Clock(), Data()
        store = PostgresStore(pool, clock)
        jobs = Jobs(store, peers, PostgresChanges(pool), clock, new_id)
        retraining = RetrainOnDrift(store, data, clock, jobs.new_job)
        yield Alerts(store, jobs, EventHandler(jobs, retraining), retraining, clock, data)


async def test_an_alert_starts_one_job_on_the_newest_data_however_often_it_comes(alerts: Alerts) -> None:
    await alerts.apply(wishing())
    episode = new_id()
    started = await alerts.told(episode)
    assert (started.state, started.reason) == (RetrainingState.STARTED, None)
    (record,) = await alerts.jobs.list(NAME, None, 100)
    assert (record.job.id, record.job.dataset_version) == (started.job, 3)
    assert record.job.traceparent.split("-")[1] == TRACEPARENT.split("-")[1]
    assert started.message == f"job {started.job} trains on dataset version 3"
    assert await alerts.told(episode) == started
    # Nor does the end of what was granted change anything.
    assert await alerts.told(episode, ended=True) == started
    assert await alerts.count() == 1


async def test_alerts_wait_for_the_cooldown_and_for_the_day_and_say_so(alerts: Alerts) -> None:
    await alerts.apply(wishing(HOUR, max_per_day=2))
    await alerts.told(new_id())
    alerts.data.version = 4
    second = new_id()
    waiting = await alerts.told(second, dataset_version=3)
    assert (waiting.state, waiting.reason) == (RetrainingState.WAITING, Reason.COOLING_DOWN)
    assert waiting.message.endswith("the next one may start at 2026-01-02 01:00:00 UTC")
    assert (await alerts.after(HOUR, second)).state is RetrainingState.STARTED
    alerts.data.version = 5
    third = new_id()
    assert (await alerts.told(third, dataset_version=4)).reason is Reason.COOLING_DOWN
    assert (await alerts.after(HOUR, third)).reason is Reason.DAILY_LIMIT
    assert (await alerts.after(22 * HOUR, third)).state is RetrainingState.STARTED
    assert await alerts.count() == 3


async def test_an_alert_waits_for_data_that_is_newer_and_good(alerts: Alerts) -> None:
    await alerts.apply(wishing())
    episode = new_id()
    alerts.data.error = Unavailable("SERVICE_UNAVAILABLE", "ingestion does not answer")
    undecided = await alerts.told(episode)
    assert undecided.reason is Reason.UNDECIDED
    assert "ingestion does not answer" in undecided.message
    alerts.data.error, alerts.data.version = None, 2
    assert (await alerts.after(DATA_PAUSE, episode)).reason is Reason.NO_NEW_DATA
    alerts.data.version, alerts.data.blocked = 3, True
    # Not yet asked for again.
    assert (await alerts.after(DATA_PAUSE / 2, episode)).reason is Reason.NO_NEW_DATA
    blocked = await alerts.after(DATA_PAUSE / 2, episode)
    assert blocked.reason is Reason.DATASET_VERSION_BLOCKED
    assert "half of it is missing" in blocked.message
    alerts.data.blocked = False
    assert (await alerts.after(DATA_PAUSE, episode)).state is RetrainingState.STARTED


async def test_drift_that_is_over_asks_for_nothing_any_more(alerts: Alerts) -> None:
    await alerts.apply(wishing())
    alerts.data.version = 2
    episode = new_id()
    await alerts.told(episode)
    withdrawn = await alerts.told(episode, ended=True)
    assert (withdrawn.state, withdrawn.reason) == (RetrainingState.WITHDRAWN, Reason.DRIFT_ENDED)
    alerts.data.version = 3
    assert await alerts.after(DATA_PAUSE, episode) == withdrawn
    assert await alerts.count() == 0


async def test_a_pipeline_that_does_not_ask_for_it_is_not_retrained_and_says_so(alerts: Alerts) -> None:
    await alerts.apply(a_spec())
    refused = await alerts.told(new_id())
    assert (refused.state, refused.reason) == (RetrainingState.WITHDRAWN, Reason.NOT_WANTED)
    # One that asked for it, and does no longer.
    await alerts.apply(wishing())
    alerts.data.version = 2
    episode = new_id()
    assert (await alerts.told(episode)).state is RetrainingState.WAITING
    await alerts.apply(a_spec())
    assert (await alerts.after(DATA_PAUSE, episode)).reason is Reason.NOT_WANTED
    assert await alerts.count() == 0


async def test_a_living_job_on_the_same_data_is_the_one_and_an_ended_one_is_not(alerts: Alerts) -> None:
    await alerts.apply(wishing(timedelta(0)))
    first, second, third = (new_id() for _ in range(3))
    started = await alerts.told(first)
    assert (await alerts.told(second)).job == started.job
    await alerts.jobs.cancel(started.job)
    waiting = await alerts.told(third)
    assert (waiting.state, waiting.reason) == (RetrainingState.WAITING, Reason.NO_NEW_DATA)
    assert await alerts.count() == 1


async def test_alerts_of_models_without_a_pipeline_are_nobodys(alerts: Alerts) -> None:
    await alerts.handler.handle(alert(new_id(), "unknown"))
    await alerts.retraining.look()
    assert await alerts.retraining.of_pipeline("unknown") == []


async def test_what_is_no_episode_is_a_dead_letter(alerts: Alerts) -> None:
    with pytest.raises(PermanentFailure):
        await alerts.handler.handle(alert("7", NAME))


@pytest.mark.broker
@pytest.mark.kill
async def test_killed_after_a_job_was_started_it_starts_no_other(
    scheduling: Scheduling, tmp_path: Path
) -> None:
    once = {
        "HEADRACE_FAULT": "scheduling.after-retraining-commit",
        "HEADRACE_FAULT_ONCE": str(tmp_path / "died"),
    }
    dying = await scheduling.start_ready(**once)
    async with stub_of(dying) as stub:
        wish = retraining_pb2.DriftRetraining()
        await scheduling.apply(stub, retrain_on_drift=wish)
    scheduling.peers.ingestion.latest_version = 3
    told = alert(str(uuid.uuid4()), scheduling.pipeline)
    await scheduling.publish(topics.INFERENCE_ALERTS, (scheduling.pipeline, told))
    assert await dying.ended() == -9
    restarted = await scheduling.restart(dying, **once)
    again = alert(str(uuid.uuid4()), scheduling.pipeline)
    await scheduling.publish(
        topics.INFERENCE_ALERTS, (scheduling.pipeline, told), (scheduling.pipeline, again)
    )
    async with stub_of(restarted) as stub:

        async def pipeline() -> pb.Pipeline:
            return await stub.GetPipeline(pb.GetPipelineRequest(name=scheduling.pipeline))

        found = await eventually(pipeline, lambda found: len(found.retrainings) == 2)
        jobs = (await stub.ListJobs(pb.ListJobsRequest(pipeline=scheduling.pipeline))).jobs
    by_episode = {one.episode: one for one in found.retrainings}
    assert [job.id for job in jobs] == [by_episode[told.id].job]
    assert by_episode[told.id].state == retraining_pb2.RETRAINING_STATE_STARTED
    assert by_episode[again.id].state == retraining_pb2.RETRAINING_STATE_WAITING
