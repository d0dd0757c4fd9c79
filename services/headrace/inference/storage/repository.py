"""Deployments, rollouts, predictions and feedback as rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

import asyncpg
import orjson

from headrace.errors import NotFound
from headrace.inference.domain.analysis import BUCKETS_PER_DOUBLING
from headrace.inference.domain.class_names import answered_classes
from headrace.inference.domain.deployments import Deployment, ServedVersion
from headrace.inference.domain.drift import DriftRules
from headrace.inference.domain.quality import Met, restated
from headrace.inference.domain.rollouts import Plan, Rollout
from headrace.inference.domain.scaling import Scale, Scaling
from headrace.inference.domain.sequential import Tally
from headrace.inference.domain.serving import Serving
from headrace.inference.storage.known import QUERIES, Known
from headrace.inference.storage.rows import (
    ANALYSIS,
    AUDIENCE,
    BASELINES,
    DRIFT_RULES,
    JUDGEMENT,
    SCALE,
    SCALING,
    SHADOW,
    deployment_of,
    rollout_of,
    served_version_of,
)
from headrace.inference.storage.serving_column import serving_column
from headrace.inference.use_cases.ports import Counted, Group, LoggedPrediction, TrueLabel
from headrace.postgres import Connection


class Repository:
    """Reads and writes within the connection's transaction."""

    def __init__(self, connection: Connection, known: Known) -> None:
        """`known` is shared by all transactions."""
        self._connection = connection
        self._known = known

    async def put_served_version(self, version: ServedVersion) -> None:
        """Remember a promoted version."""
        await self._connection.execute(
            QUERIES["put_served_version"],
            version.model,
            version.version,
            version.uri,
            version.sha256,
            version.signature,
            version.traceparent,
            version.dataset,
            version.format,
            version.dataset_version,
            version.size,
        )

    async def served_versions(self, model: str) -> list[ServedVersion]:
        """A model's promoted versions, oldest first."""
        rows = await self._connection.fetch(QUERIES["list_served_versions"], model)
        return [served_version_of(row) for row in rows]

    async def served_version(self, model: str, version: int) -> ServedVersion | None:
        """One promoted version; None where there is none of that number."""
        row = await self._connection.fetchrow(QUERIES["get_served_version"], model, version)
        return None if row is None else served_version_of(row)

    async def all_served_versions(self) -> dict[str, list[ServedVersion]]:
        """Every model's promoted versions, oldest first."""
        return await self._known.versions(self._connection)

    async def create_or_lock_deployment(self, name: str, model: str, plan: Plan, now: datetime) -> Deployment:
        """Create the deployment; one that there is, being deleted or not, is locked and returned as it is."""
        await self._connection.execute(
            QUERIES["insert_or_lock_deployment"],
            name,
            model,
            *_plan_columns(plan),
            now,
        )
        return await self.deployment(name, lock=True)

    async def change_plan(self, name: str, plan: Plan, now: datetime) -> None:
        """Roll out differently from now on."""
        await self._connection.execute(QUERIES["change_plan"], name, *_plan_columns(plan), now)

    async def change_drift_rules(self, name: str, rules: DriftRules) -> None:
        """Watch for drift differently from now on."""
        await self._connection.execute(
            QUERIES["change_drift_rules"], name, DRIFT_RULES.dump_python(rules, mode="json")
        )

    async def change_serving(self, name: str, serving: Serving, now: datetime) -> None:
        """Serve differently from now on."""
        await self._connection.execute(QUERIES["change_serving"], name, serving_column(serving), now)

    async def has_log_table(self) -> bool:
        """Whether any deployment's predictions ever became rows of a dataset."""
        named: bool = await self._connection.fetchval(QUERIES["has_log_table"])
        return named

    async def record_served(self, name: str, serving: Serving) -> None:
        """What is loaded is served so."""
        await self._connection.execute(QUERIES["record_served"], name, serving_column(serving))

    async def change_scaling(self, name: str, scaling: Scaling, now: datetime) -> None:
        """Follow the load within these bounds from now on."""
        await self._connection.execute(
            QUERIES["change_scaling"], name, SCALING.dump_python(scaling, mode="json"), now
        )

    async def change_scale(self, name: str, scale: Scale) -> None:
        """Where it is to be from now on."""
        await self._connection.execute(QUERIES["change_scale"], name, SCALE.dump_python(scale, mode="json"))

    async def record_placed(self, name: str, scale: Scale, now: datetime) -> None:
        """Requests go there from now on."""
        await self._connection.execute(
            QUERIES["record_placed"], name, SCALE.dump_python(scale, mode="json"), now
        )

    async def record_demand(self, name: str) -> None:
        """A request found it nowhere, and waits."""
        await self._connection.execute(QUERIES["record_demand"], name)

    async def revive_deployment(self, name: str) -> None:
        """Take a deletion back. Its rollouts are forgotten: every version is new to it again."""
        await self._connection.execute(QUERIES["forget_rollouts"], name)
        await self._connection.execute(QUERIES["revive_deployment"], name)

    async def deployment(self, name: str, *, lock: bool = False) -> Deployment:
        """One deployment; with `lock`, nobody else changes it until the transaction ends. Raises NotFound."""
        row = await self._connection.fetchrow(QUERIES["lock_deployment" if lock else "get_deployment"], name)
        if row is None:
            raise NotFound(
                "DEPLOYMENT_NOT_FOUND",
                f"there is no deployment {name!r}; `headrace get deployments` lists them",
            )
        return (await self._deployments([row]))[0]

    async def deployments(self, after: str, limit: int) -> list[Deployment]:
        """Deployments by name."""
        return await self._deployments(
            await self._connection.fetch(QUERIES["list_deployments"], after, limit)
        )

    async def all_deployments(self) -> list[Deployment]:
        """Every deployment, those that are being deleted too."""
        return await self._known.deployments(self._connection)

    async def deployments_named(self, names: Collection[str]) -> list[Deployment]:
        """Those of them that there are, also those that are being deleted."""
        return await self._deployments(
            await self._connection.fetch(QUERIES["deployments_by_key"], list(names))
        )

    async def save_deployment(self, deployment: Deployment) -> None:
        """Store what changes while it lives."""
        await self._connection.execute(
            QUERIES["save_deployment"],
            deployment.name,
            {str(version): weight for version, weight in deployment.traffic.items()},
            sorted(deployment.loaded),
            deployment.message,
            deployment.deleted,
            deployment.update_time,
        )

    async def forget_deployment(self, name: str) -> None:
        """Remove a deleted deployment's row."""
        await self._connection.execute(QUERIES["forget_deployment"], name)

    async def all_rolled_out(self) -> dict[str, frozenset[int]]:
        """Versions that a rollout was made for, by deployment; not those that gave way to a newer one."""
        rows = await self._connection.fetch(QUERIES["rolled_out_versions"])
        return {row["deployment"]: frozenset(row["versions"]) for row in rows}

    async def put_rollout(self, rollout: Rollout) -> None:
        """Store a rollout as it is."""
        await self._connection.execute(
            QUERIES["put_rollout"],
            rollout.id,
            rollout.deployment,
            rollout.from_version,
            rollout.to_version,
            rollout.state,
            rollout.step,
            rollout.weight,
            rollout.message,
            rollout.traceparent,
            rollout.create_time,
            rollout.step_time,
            rollout.end_time,
            rollout.superseded,
            rollout.paused,
            JUDGEMENT.dump_python(rollout.judgement, mode="json") if rollout.judgement else None,
            BASELINES.dump_python(dict(rollout.baselines), mode="json"),
        )

    async def rollouts(self, deployment: str, before: datetime, before_id: str, limit: int) -> list[Rollout]:
        """A deployment's rollouts, newest first."""
        rows = await self._connection.fetch(QUERIES["list_rollouts"], deployment, before, before_id, limit)
        return [rollout_of(row) for row in rows]

    async def put_predictions(self, predictions: Sequence[LoggedPrediction]) -> None:
        """Store predictions; those that are there already are left alone."""
        rows = [
            (
                p.event_id,
                p.prediction_id,
                p.deployment,
                p.version,
                p.time,
                p.seconds,
                orjson.dumps(p.inputs).decode(),
                orjson.dumps(p.outputs).decode(),
                p.answer,
                p.traceparent,
                p.subject,
                p.shadow,
                p.mirror_id,
                p.segment,
            )
            for p in predictions
        ]
        if rows:
            await self._connection.execute(QUERIES["put_predictions"], *map(list, zip(*rows, strict=True)))

    async def erase_predictions(self, erasure: str, dataset: str, subject: str, time: datetime) -> int:
        """Remove a subject's predictions and requests, and remember that.

        How many predictions this erasure has removed so far.
        """
        # What is being stored is there when the locks are, and what comes later finds the erasure.
        await self._connection.execute(QUERIES["lock_requests"])
        await self._connection.execute(QUERIES["lock_predictions"])
        await self._connection.execute(QUERIES["erase_requests"], dataset, subject)
        removed = await self._connection.fetchval(QUERIES["erase_predictions"], dataset, subject)
        count: int = await self._connection.fetchval(
            QUERIES["remember_erasure"], erasure, dataset, subject, time, removed
        )
        return count

    async def erase_late(self, event_ids: Sequence[str]) -> None:
        """Remove those of the predictions that were made before their subject was erased."""
        await self._connection.execute(QUERIES["erase_late_predictions"], event_ids)

    async def erased_from_tables(
        self, predictions: Sequence[tuple[str, str, str, datetime]]
    ) -> frozenset[str]:
        """Of (event id, dataset, subject, time) ids of what is from before the subject was erased there."""
        columns = zip(*predictions, strict=True)
        rows = await self._connection.fetch(QUERIES["erased_from_tables"], *map(list, columns))
        return frozenset(row["event_id"] for row in rows)

    async def forget_predictions(self, age: timedelta, limit: int) -> int:
        """Remove so many that were stored so long ago, at most, and their labels; how many it has been."""
        gone = await self._connection.fetch(QUERIES["forget_predictions"], age, limit)
        columns = [[row[key] for row in gone] for key in ("deployment", "prediction_id")]
        await self._connection.execute(QUERIES["forget_labels_of"], *columns)
        return len(gone)

    async def forget_labels(self, age: timedelta, limit: int) -> int:
        """The same of labels that belong to no prediction."""
        return len(await self._connection.fetch(QUERIES["forget_labels"], age, limit))

    async def forget_erasures(self, before: datetime) -> int:
        """Forget erasures from before that moment; how many there were."""
        return len(await self._connection.fetch(QUERIES["forget_erasures"], before))

    async def put_feedback(self, labels: Sequence[TrueLabel]) -> None:
        """Store true labels; of a prediction's the newest one stands, of two of one moment the first."""
        rows = [(label.deployment, label.prediction_id, label.label, label.time) for label in labels]
        # In one order, so that two instances do not wait for each other's.
        await self._connection.executemany(QUERIES["put_feedback"], sorted(rows, key=lambda row: row[:2]))

    async def predictions(
        self, deployment: str, before: datetime, before_id: str, limit: int
    ) -> list[LoggedPrediction]:
        """A deployment's predictions, newest first, with their labels."""
        rows = await self._connection.fetch(QUERIES["list_predictions"], deployment, before, before_id, limit)
        return [_prediction(row) for row in rows]

    async def prediction(self, deployment: str, prediction_id: str) -> LoggedPrediction:
        """The newest prediction of that id. Raises NotFound."""
        row = await self._connection.fetchrow(QUERIES["get_prediction"], deployment, prediction_id)
        if row is None:
            raise NotFound(
                "PREDICTION_NOT_FOUND",
                f"the log of {deployment} has no prediction of that id: it is not there yet, it was erased, "
                "or it never was",
            )
        return _prediction(row)

    async def count_logged(self, deployment: str, prediction_ids: Collection[str]) -> int:
        """How many of these predictions are in the log."""
        count: int = await self._connection.fetchval(
            QUERIES["count_logged"], deployment, list(prediction_ids)
        )
        return count

    async def prediction_counts(self, deployment: str, version: int, largest: int) -> Counted:
        """Predictions of each version (or of one that is not 0) and each of the largest segments."""
        rows = await self._connection.fetch(QUERIES["count_predictions"], deployment, version, largest)
        return Counted(
            {Group(row["version"], row["segment"]): row["predictions"] for row in rows},
            rows[0]["segments"] if rows else 0,
        )

    async def answer_counts(
        self, deployment: str, version: int, segments: Collection[str]
    ) -> dict[Group, list[Met]]:
        """How often the answers of each version and each of these segments met which true labels."""
        counts: dict[Group, list[Met]] = {}
        for row in await self._connection.fetch(
            QUERIES["count_answers"], deployment, version, list(segments)
        ):
            group = Group(row["version"], row["segment"])
            counts.setdefault(group, []).append(Met(row["answer"], row["label"], row["count"]))
        return counts

    async def latency_counts(
        self, deployment: str, since: Mapping[int, datetime]
    ) -> dict[int, dict[int, int]]:
        """Each version's predictions from its moment on, by bucket of latency (`analysis.Observed`)."""
        rows = await self._connection.fetch(
            QUERIES["count_latencies"], deployment, list(since), list(since.values()), BUCKETS_PER_DOUBLING
        )
        counts: dict[int, dict[int, int]] = {}
        for row in rows:
            counts.setdefault(row["version"], {})[row["bucket"]] = row["count"]
        return counts

    async def answers_given(
        self, deployment: str, since: Mapping[int, datetime]
    ) -> dict[int, dict[float, int]]:
        """How often each version gave which answer from its moment on, classes as the newest one does."""
        rows = await self._connection.fetch(
            QUERIES["count_answers_given"], deployment, list(since), list(since.values())
        )
        classes = await self._classes(deployment, since)
        newest = classes.get(max(since, default=0), ())
        said = {version: restated(classes.get(version, ()), newest) for version in since}
        counts: dict[int, dict[float, int]] = {}
        for row in rows:
            version, answer = row["version"], row["answer"]
            counts.setdefault(version, Counter())[said[version].get(answer, answer)] += row["count"]
        return counts

    async def answer_counts_since(
        self, deployment: str, since: Mapping[int, datetime]
    ) -> dict[int, list[Met]]:
        """How often each version's answers from its moment on met which true labels."""
        rows = await self._connection.fetch(
            QUERIES["count_answers_since"], deployment, list(since), list(since.values())
        )
        return _met(rows)

    async def differing_answers(
        self, deployment: str, new: int, old: int, since: datetime, tolerance: float
    ) -> Tally:
        """Of requests that both versions were asked, how many the new one answered otherwise, of how many."""
        classes = await self._classes(deployment, (new, old))
        said = restated(classes.get(old, ()), classes.get(new, ()))
        row = await self._connection.fetchrow(
            QUERIES["count_differing"],
            deployment,
            new,
            old,
            since,
            # Of classes no one is near another.
            0.0 if classes.get(new) else tolerance,
            list(said),
            list(said.values()),
        )
        assert row is not None
        return Tally(row["hits"], row["total"])

    async def _classes(self, deployment: str, versions: Collection[int]) -> dict[int, tuple[str, ...]]:
        """The classes that each of these versions answers, in its own order."""
        rows = await self._connection.fetch(QUERIES["get_served_versions"], deployment, list(versions))
        return {row["version"]: answered_classes(served_version_of(row)) for row in rows}

    async def _deployments(self, rows: Sequence[asyncpg.Record]) -> list[Deployment]:
        names = [row["name"] for row in rows]
        last = {
            row["deployment"]: rollout_of(row)
            for row in await self._connection.fetch(QUERIES["last_rollouts"], names)
        }
        return [deployment_of(row, last.get(row["name"])) for row in rows]


def _met(rows: Sequence[asyncpg.Record]) -> dict[int, list[Met]]:
    counts: dict[int, list[Met]] = {}
    for row in rows:
        counts.setdefault(row["version"], []).append(Met(row["answer"], row["label"], row["count"]))
    return counts


def _plan_columns(plan: Plan) -> tuple[object, ...]:
    """As the queries take them: steps to audience."""
    return (
        list(plan.steps),
        plan.hold.total_seconds(),
        ANALYSIS.dump_python(plan.analysis, mode="json"),
        SHADOW.dump_python(plan.shadow, mode="json"),
        plan.sticky_header,
        AUDIENCE.dump_python(plan.audience, mode="json"),
    )


def _prediction(row: asyncpg.Record) -> LoggedPrediction:
    return LoggedPrediction(
        event_id=row["event_id"],
        prediction_id=row["prediction_id"],
        deployment=row["deployment"],
        version=row["version"],
        time=row["time"],
        seconds=row["seconds"],
        inputs=orjson.loads(row["inputs"]),
        outputs=orjson.loads(row["outputs"]),
        answer=row["answer"],
        traceparent=row["traceparent"],
        label=row["label"],
        shadow=row["shadow"],
        mirror_id=row["mirror_id"],
        segment=row["segment"],
    )
