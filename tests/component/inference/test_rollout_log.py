"""What a step is judged by, as PostgreSQL counts it in the prediction log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest

from headrace.api.registry.v1 import registry_pb2
from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.domain.quality import Met
from headrace.inference.domain.rollouts import Plan
from headrace.inference.domain.sequential import Tally
from headrace.inference.domain.trials import Audience, Shadow
from headrace.inference.storage.known import Known
from headrace.inference.storage.repository import Repository
from headrace.inference.use_cases.ports import Counted, Group, LoggedPrediction, TrueLabel
from headrace.postgres import connect, transaction
from headrace.postgres.migrations import migrate

BEGAN = datetime(2026, 1, 2, tzinfo=UTC)
SECOND = timedelta(seconds=1)
NAME = "live"


class Log:
    """A database of the test's own, and predictions in it."""

    def __init__(self, rows: Repository) -> None:
        self.rows = rows
        self._numbers = count()

    async def predicted(
        self,
        version: int,
        answer: float | None,
        *,
        seconds: float = 0.01,
        time: datetime = BEGAN,
        prediction_id: str = "",
        mirror_id: str = "",
        shadow: bool = False,
        deployment: str = NAME,
        segment: str = "",
    ) -> None:
        number = next(self._numbers)
        prediction = LoggedPrediction(
            event_id=f"event-{number}",
            prediction_id=prediction_id or f"prediction-{number}",
            deployment=deployment,
            version=version,
            time=time,
            seconds=seconds,
            inputs={},
            outputs={},
            answer=answer,
            traceparent="",
            shadow=shadow,
            mirror_id=mirror_id,
            segment=segment,
        )
        await self.rows.put_predictions([prediction])

    async def mirrored(self, name: str, old: float | None, new: float | None) -> None:
        """A request that both versions were asked."""
        await self.predicted(1, old, mirror_id=name)
        await self.predicted(2, new, mirror_id=name, shadow=True)

    async def told_apart(self, classes: Mapping[int, Sequence[str]], answer: str = "label") -> None:
        """The deployment is there, and its versions tell these classes apart; their answer has that name."""
        await self.rows.create_or_lock_deployment(NAME, "model", Plan(), BEGAN)
        for version, names in classes.items():
            label = registry_pb2.TensorSpec(name=answer, datatype="INT64", shape=[-1])
            signature = registry_pb2.Signature(classes=names, outputs=[label]).SerializeToString()
            await self.rows.put_served_version(
                ServedVersion("model", version, "", "", (), (), tuple(names), signature, "")
            )

    async def differing(self, tolerance: float = 0.0) -> Tally:
        return await self.rows.differing_answers(NAME, 2, 1, BEGAN, tolerance)


@pytest.fixture
async def log(postgres_dsn: str) -> AsyncIterator[Log]:
    async with connect(postgres_dsn, schema="inference", application_name="tests") as pool:
        await migrate(pool, "headrace.inference.storage")
        async with transaction(pool) as connection:
            yield Log(Repository(connection, Known()))


async def test_latencies_are_counted_by_version_and_bucket_from_each_ones_moment_on(log: Log) -> None:
    for seconds in (1.0, 0.5, 0.49, 0.0):
        await log.predicted(1, 0.0, seconds=seconds)
    await log.predicted(2, 0.0, seconds=2.0)
    await log.predicted(1, 0.0, time=BEGAN - SECOND)
    await log.predicted(2, 0.0, time=BEGAN)
    await log.predicted(3, 0.0)
    await log.predicted(1, 0.0, deployment="another")
    counts = await log.rows.latency_counts(NAME, {1: BEGAN, 2: BEGAN + SECOND})
    # Eight buckets a doubling; what took no time at all is as a microsecond.
    assert counts == {1: {0: 1, -8: 2, -159: 1}}
    counts = await log.rows.latency_counts(NAME, {2: BEGAN})
    assert counts == {2: {8: 1, -53: 1}}


async def test_answers_are_counted_by_version_and_value(log: Log) -> None:
    for version, answer in ((1, 0.0), (1, 1.0), (1, 1.0), (2, 1.0), (2, None)):
        await log.predicted(version, answer)
    await log.predicted(1, 0.0, time=BEGAN - SECOND)
    since = {1: BEGAN, 2: BEGAN}
    assert await log.rows.answers_given(NAME, since) == {1: {0.0: 1, 1.0: 2}, 2: {1.0: 1}}


async def test_answers_meet_the_labels_that_have_arrived(log: Log) -> None:
    await log.predicted(1, 1.0, prediction_id="a")
    await log.predicted(2, 0.0, prediction_id="b")
    await log.predicted(2, 0.0, prediction_id="c")
    await log.predicted(1, 1.0, prediction_id="early", time=BEGAN - SECOND)
    labels = (("a", 1.0), ("b", "yes"), ("early", 1.0), ("nobody's", 1.0))
    await log.rows.put_feedback([TrueLabel(NAME, name, label, BEGAN) for name, label in labels])
    found = await log.rows.answer_counts_since(NAME, {1: BEGAN, 2: BEGAN})
    assert found == {1: [Met(1.0, 1.0, 1)], 2: [Met(0.0, "yes", 1)]}


async def test_of_a_predictions_labels_the_newest_one_stands_in_whatever_order_they_come(log: Log) -> None:
    await log.predicted(1, 1.0, prediction_id="a")
    old, new = TrueLabel(NAME, "a", 0.0, BEGAN), TrueLabel(NAME, "a", 1.0, BEGAN + SECOND)
    other = TrueLabel(NAME, "a", 2.0, BEGAN + SECOND)
    for labels in ([new, old], [other], [old, new]):
        await log.rows.put_feedback(labels)
        assert await log.rows.answer_counts(NAME, 0, [""]) == {Group(1, ""): [Met(1.0, 1.0, 1)]}


async def test_a_shadows_answers_are_compared_with_those_to_the_same_requests(log: Log) -> None:
    await log.mirrored("alike", 1.0, 1.0)
    await log.mirrored("unlike", 1.0, 0.0)
    # It answered with no number where the live version did.
    await log.mirrored("none", 1.0, None)
    # Several rows, of which the log has no single answer.
    await log.mirrored("rows", None, None)
    # Half a pair, and one whose id a caller repeats.
    await log.predicted(1, 1.0, mirror_id="alone")
    await log.mirrored("twice", 1.0, 0.0)
    await log.predicted(2, 0.0, mirror_id="twice", shadow=True)
    # Neither mirrored, nor of this step.
    await log.predicted(1, 1.0)
    await log.predicted(1, 1.0, mirror_id="early", time=BEGAN - SECOND)
    await log.predicted(2, 0.0, mirror_id="early", time=BEGAN - SECOND, shadow=True)
    assert await log.differing() == Tally(2, 3)


async def test_numbers_agree_within_the_tolerance(log: Log) -> None:
    for old, new in ((100.0, 101.0), (-100.0, -101.0), (100.0, 99.0), (0.0, 0.0)):
        await log.mirrored(f"{old} {new}", old, new)
    assert await log.differing() == Tally(3, 4)
    assert await log.differing(0.02) == Tally(0, 4)
    assert await log.differing(0.005) == Tally(3, 4)


async def test_classes_are_the_same_that_have_the_same_name_wherever_a_version_has_them(log: Log) -> None:
    await log.told_apart({1: ('"cat"', '"dog"', '"eel"'), 2: ('"ant"', '"cat"', '"dog"')})
    await log.mirrored("both say cat", 0.0, 1.0)
    await log.mirrored("both say dog", 1.0, 2.0)
    await log.mirrored("cat and ant", 0.0, 0.0)
    # Eel, which the new version does not know, is not its 2, and as 3 not within half of it.
    await log.mirrored("eel and dog", 2.0, 2.0)
    assert await log.differing(0.5) == Tally(2, 4)
    given = await log.rows.answers_given(NAME, {1: BEGAN, 2: BEGAN})
    assert given == {1: {1.0: 2, 2.0: 1, 3.0: 1}, 2: {0.0: 1, 1.0: 1, 2.0: 2}}


async def test_classes_that_are_numbers_are_their_own_names(log: Log) -> None:
    await log.told_apart({1: ("5", "7"), 2: ("3", "5", "7")})
    await log.mirrored("alike", 5.0, 5.0)
    await log.mirrored("unlike", 5.0, 7.0)
    assert await log.differing(0.9) == Tally(1, 2)
    given = await log.rows.answers_given(NAME, {1: BEGAN, 2: BEGAN})
    assert given == {1: {5.0: 2}, 2: {5.0: 1, 7.0: 1}}


async def test_what_is_no_label_is_a_number_also_of_a_model_that_has_classes(log: Log) -> None:
    await log.told_apart({1: ('"no"', '"yes"'), 2: ('"no"', '"perhaps"', '"yes"')}, answer="score")
    await log.mirrored("near", 1.0, 0.9)
    await log.mirrored("alike", 1.0, 1.0)
    assert await log.differing() == Tally(1, 2)
    assert await log.differing(0.2) == Tally(0, 2)
    assert (await log.rows.answers_given(NAME, {1: BEGAN, 2: BEGAN}))[1] == {1.0: 2}


async def test_no_two_numbers_are_too_far_apart_or_too_close_to_be_compared(log: Log) -> None:
    await log.mirrored("far", 1e308, -1e308)
    await log.mirrored("close", 5e-324, 1e-323)
    assert await log.differing(0.5) == Tally(2, 2)


async def test_what_a_shadow_answered_counts_for_no_live_quality(log: Log) -> None:
    await log.mirrored("request", 1.0, 0.0)
    await log.predicted(1, 1.0, prediction_id="a")
    await log.predicted(2, 0.0, prediction_id="a", shadow=True)
    await log.rows.put_feedback([TrueLabel(NAME, "a", 1.0, BEGAN)])
    assert await log.rows.prediction_counts(NAME, 0, 50) == Counted({Group(1, ""): 2}, 0)
    assert await log.rows.answer_counts(NAME, 0, [""]) == {Group(1, ""): [Met(1.0, 1.0, 1)]}
    # What it is judged by has it.
    since = {1: BEGAN, 2: BEGAN}
    assert (await log.rows.answer_counts_since(NAME, since))[2] == [Met(0.0, 1.0, 1)]


async def test_the_largest_segments_are_counted_and_the_rest_is_one(log: Log) -> None:
    for version, segment in (
        *((1, "a"),) * 2,
        *((2, "a"),) * 2,
        *((1, "b"),) * 3,
        (1, "c"),
        (2, "d"),
        (2, "e"),
        *((1, ""),) * 2,
    ):
        await log.predicted(version, 1.0, prediction_id=segment, segment=segment)
    await log.predicted(1, 1.0, segment="f", shadow=True)
    await log.predicted(1, 1.0, segment="g", deployment="another")
    counted = await log.rows.prediction_counts(NAME, 0, 2)
    assert counted.segments == 5
    assert counted.predictions == {
        Group(1, ""): 2,
        Group(1, "a"): 2,
        Group(2, "a"): 2,
        Group(1, "b"): 3,
        Group(1, None): 1,
        Group(2, None): 2,
    }
    of_one = await log.rows.prediction_counts(NAME, 2, 2)
    assert of_one == Counted({Group(2, "a"): 2, Group(2, "d"): 1, Group(2, None): 1}, 3)
    await log.rows.put_feedback([TrueLabel(NAME, name, 1.0, BEGAN) for name in ("b", "c", "d", "e")])
    assert await log.rows.answer_counts(NAME, 0, ["", "a", "b"]) == {
        Group(1, "b"): [Met(1.0, 1.0, 3)],
        Group(1, None): [Met(1.0, 1.0, 1)],
        Group(2, None): [Met(1.0, 1.0, 2)],
    }
    assert await log.rows.answer_counts(NAME, 2, ["d"]) == {
        Group(2, "d"): [Met(1.0, 1.0, 1)],
        Group(2, None): [Met(1.0, 1.0, 1)],
    }


async def test_a_plan_is_stored_whole(log: Log) -> None:
    plan = Plan(
        (0, 100),
        SECOND,
        shadow=Shadow(25, 60 * SECOND),
        sticky_header="x-user-id",
        audience=Audience("x-cohort", frozenset({"beta", "staff"})),
    )
    created = await log.rows.create_or_lock_deployment(NAME, "model", plan, BEGAN)
    assert created.plan == plan
    await log.rows.change_plan(NAME, Plan(), BEGAN)
    assert (await log.rows.deployment(NAME)).plan == Plan()
