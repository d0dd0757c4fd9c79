"""Watching for drift over real tables: windows, episodes, and what is told of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from headrace.api.inference.v1 import drift_pb2 as api
from headrace.api.registry.v1 import registry_pb2
from headrace.errors import HeadraceError, NotFound, Unavailable
from headrace.events.inference.v1 import events_pb2
from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.domain.drift import Column, DriftRules, Numbers, Reference, Values
from headrace.inference.domain.drift_watch import NOTHING_COMPARED, EndReason
from headrace.inference.domain.rollouts import Plan
from headrace.inference.drift_messages import drift_message
from headrace.inference.storage.drift import DRIFT_DETECTED, DRIFT_ENDED, WINDOWS_KEPT, PostgresDrift
from headrace.inference.storage.work import PostgresUnitOfWork
from headrace.inference.use_cases.ports import LoggedPrediction
from headrace.inference.use_cases.watch_drift import (
    UNKNOWN_DATASET,
    DriftReport,
    DriftState,
    ReportDrift,
    WatchDrift,
)
from headrace.messaging.topics import INFERENCE_ALERTS
from headrace.postgres import Pool, connect
from headrace.postgres.migrations import migrate
from headrace.runtime.ids import new_id

NAME, MODEL = "live", "tumours"
RULES = DriftRules(requests=100)
RANKS = tuple(tenth / 10 for tenth in range(1, 10))
# Numbers from 0 to 1, and as many of either class.
TRAINED_ON = Reference(
    {"radius": Column(Numbers(1000, 0.0, 1.0, RANKS, RANKS))}, Values(1000, {0.0: 500, 1.0: 500})
)
SIGNATURE = registry_pb2.Signature(features=["radius"], classes=["0", "1"]).SerializeToString()


@dataclass
class Watched:
    """A deployment in a database of the test's own, and what its version was trained on."""

    pool: Pool
    profile: Reference | HeadraceError = TRAINED_ON
    now: datetime = datetime(2026, 1, 2, tzinfo=UTC)
    asked: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.work = PostgresUnitOfWork(self.pool, "")
        self.store = PostgresDrift(self.pool)
        self.watch = WatchDrift(self.work, self.store, self, lambda: self.now, new_id)

    async def reference(self, version: ServedVersion) -> Reference:
        if isinstance(self.profile, HeadraceError):
            raise self.profile
        return self.profile

    async def deploy(self, version: int, *, dataset_version: int = 7) -> None:
        served = ServedVersion(
            MODEL, version, "", "", (), (), (), SIGNATURE, "", "scans", dataset_version=dataset_version
        )
        async with self.work() as work:
            await work.rows.put_served_version(served)
            known = await work.rows.create_or_lock_deployment(NAME, MODEL, Plan(), self.now)
            await work.rows.change_drift_rules(NAME, RULES)
            await work.rows.save_deployment(replace(known, traffic={version: 100}))
        await self.watch.look()

    async def window(
        self, version: int = 1, *, shift: float = 0.0, answers: tuple[int, ...] = (0, 1), rows: int = 1
    ) -> None:
        """As many requests as a window has, in as long as one takes, and a look at them."""
        rng = np.random.default_rng(self.asked)
        requests = []
        for _ in range(RULES.requests):
            self.asked += 1
            self.now += RULES.every / RULES.requests
            radius, answer = rng.random(rows) + shift, answers[self.asked % len(answers)]
            requests.append(
                LoggedPrediction(
                    event_id=f"event-{self.asked}",
                    prediction_id="",
                    deployment=NAME,
                    version=version,
                    time=self.now,
                    seconds=0.01,
                    inputs={"features": {"shape": [rows, 1], "data": radius.tolist()}},
                    outputs={"label": {"shape": [rows, 1], "data": [answer] * rows}},
                    answer=None,
                    traceparent="",
                )
            )
        async with self.work() as work:
            await work.rows.put_predictions(requests)
        await self.watch.look()

    async def report(self) -> DriftReport:
        return await ReportDrift(self.work, self.store)(NAME)

    async def told(self) -> list[events_pb2.DriftDetected | events_pb2.DriftEnded]:
        """All alerts so far, in order."""
        kinds = {DRIFT_DETECTED: events_pb2.DriftDetected, DRIFT_ENDED: events_pb2.DriftEnded}
        rows = await self.pool.fetch(
            "SELECT key, headers, value FROM outbox WHERE topic = $1 ORDER BY id", INFERENCE_ALERTS
        )
        assert {row["key"] for row in rows} <= {MODEL}
        return [kinds[dict(row["headers"])["ce_type"]].FromString(row["value"]) for row in rows]


@pytest.fixture
async def watched(postgres_dsn: str) -> AsyncIterator[Watched]:
    async with connect(postgres_dsn, schema="inference", application_name="tests") as pool:
        await migrate(pool, "headrace.inference.storage")
        watched = Watched(pool)
        await watched.deploy(1)
        yield watched


async def test_an_episode_is_told_of_once_when_it_begins_and_once_when_it_is_over(watched: Watched) -> None:
    await watched.window()
    assert (await watched.report()).state is DriftState.CALM
    await watched.window(shift=2)
    assert (await watched.report()).state is DriftState.SUSPECT
    for _ in range(3):
        await watched.window(shift=2)
    drifting = await watched.report()
    assert drifting.state is DriftState.DRIFTING
    assert drifting.window is not None
    assert drifting.window.drifting == ("radius",)
    (begun,) = await watched.told()
    assert isinstance(begun, events_pb2.DriftDetected)
    episode = begun.episode
    assert (episode.id, episode.deployment, episode.model) == (drifting.episodes[0].id, NAME, MODEL)
    assert (episode.model_version, episode.dataset, episode.dataset_version) == (1, "scans", 7)
    assert [(finding.column, finding.drifts) for finding in begun.window.findings] == [("radius", True)]

    for _ in range(3):
        await watched.window()
    calm = await watched.report()
    assert calm.state is DriftState.CALM
    assert calm.episodes[0].end_reason is EndReason.RECOVERED
    _, ended = await watched.told()
    assert isinstance(ended, events_pb2.DriftEnded)
    assert ended.episode.id == episode.id
    assert ended.episode.end_reason == api.DRIFT_END_REASON_RECOVERED


async def test_answers_drift_where_what_is_asked_does_not(watched: Watched) -> None:
    await watched.window(answers=(1,))
    window = (await watched.report()).window
    assert window is not None
    assert window.drifting == ("prediction",)


async def test_a_request_for_many_rows_counts_by_its_rows(watched: Watched) -> None:
    await watched.window(rows=20)
    window = (await watched.report()).window
    assert window is not None
    # Five of the requests are as many rows as a window takes.
    assert (window.requests, window.rows) == (5, 100)


async def test_windows_in_which_nothing_could_be_compared_neither_end_an_episode_nor_are_calm(
    watched: Watched,
) -> None:
    watched.profile = Reference({})
    for _ in range(RULES.windows):
        await watched.window()
    waiting = await watched.report()
    assert (waiting.state, waiting.message) == (DriftState.WAITING, NOTHING_COMPARED)

    watched.profile = TRAINED_ON
    for _ in range(RULES.windows):
        await watched.window(shift=2)
    watched.profile = Reference({})
    for _ in range(RULES.windows):
        await watched.window()
    drifting = await watched.report()
    assert (drifting.state, drifting.message) == (DriftState.DRIFTING, NOTHING_COMPARED)
    assert [type(event) for event in await watched.told()] == [events_pb2.DriftDetected]


async def test_another_versions_episode_is_over_and_its_windows_are_its_own(
    watched: Watched,
) -> None:
    for _ in range(2):
        await watched.window(shift=2)
    await watched.deploy(2, dataset_version=8)
    _, ended = await watched.told()
    assert ended.episode.end_reason == api.DRIFT_END_REASON_REPLACED
    waiting = await watched.report()
    assert (waiting.version, waiting.dataset_version, waiting.window) == (2, 8, None)
    assert waiting.state is DriftState.WAITING
    assert waiting.message == "0 of the 100 requests of a window have come"


async def test_an_episode_ends_with_its_deployment(watched: Watched) -> None:
    for _ in range(2):
        await watched.window(shift=2)
    async with watched.work() as work:
        known = await work.rows.deployment(NAME)
        await work.rows.save_deployment(replace(known, deleted=True))
        await work.rows.forget_deployment(NAME)
    await watched.watch.look()
    await watched.watch.look()
    assert [type(event) for event in await watched.told()] == [
        events_pb2.DriftDetected,
        events_pb2.DriftEnded,
    ]
    assert await watched.store.watch(NAME) is None
    with pytest.raises(NotFound):
        await watched.report()


async def test_what_keeps_a_version_from_being_judged_is_said_and_passes(watched: Watched) -> None:
    watched.profile = Unavailable("SERVICE_UNAVAILABLE", "ingestion does not answer")
    await watched.window()
    waiting = await watched.report()
    assert waiting.state is DriftState.WAITING
    assert "ingestion does not answer" in waiting.message
    watched.profile = TRAINED_ON
    await watched.watch.look()
    assert (await watched.report()).state is DriftState.CALM
    await watched.deploy(2, dataset_version=0)
    await watched.window(2)
    assert (await watched.report()).message == UNKNOWN_DATASET


async def test_what_somebody_else_has_judged_meanwhile_is_not_judged_again(watched: Watched) -> None:
    await watched.window(shift=2)
    before = await watched.store.watch(NAME)
    assert before is not None
    await watched.window(shift=2)
    stale = replace(before, episode=new_id())
    assert not await watched.store.save(stale, None, None)
    assert len(await watched.told()) == 1


async def test_only_the_last_windows_are_kept(watched: Watched) -> None:
    await watched.window()
    watch = await watched.store.watch(NAME)
    window = (await watched.report()).window
    assert watch is not None
    assert window is not None
    for number in range(WINDOWS_KEPT + 5):
        later = replace(window, end=window.end + timedelta(seconds=number + 1))
        assert await watched.store.save(replace(watch, revision=watch.revision + number), later, None)
    assert await watched.pool.fetchval("SELECT count(*) FROM drift_windows") == WINDOWS_KEPT


async def test_a_report_is_told_whole(watched: Watched) -> None:
    for _ in range(2):
        await watched.window(shift=2)
    message = drift_message(await watched.report())
    assert message.state == api.DRIFT_STATE_DRIFTING
    assert (message.spec.requests, message.spec.windows) == (100, 2)
    assert {finding.column: finding.test for finding in message.window.findings} == {
        "radius": api.DRIFT_TEST_KOLMOGOROV_SMIRNOV,
        "prediction": api.DRIFT_TEST_CHI_SQUARE,
    }
    assert list(message.episodes[0].columns) == ["radius"]
    assert not message.episodes[0].HasField("end_time")
