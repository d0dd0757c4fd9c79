"""What users ask of deployments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from headrace.errors import FailedPrecondition
from headrace.inference.domain.deployments import Deployment, ServedVersion
from headrace.inference.domain.drift import DriftRules
from headrace.inference.domain.rollouts import Plan, Rollout, aborted, promoted, weights
from headrace.inference.domain.scaling import EVERYWHERE, NOWHERE, Scaling
from headrace.inference.domain.scaling import checked as checked_scaling
from headrace.inference.domain.serving import UNCHANGED, Serving, ServingChange, checked
from headrace.inference.use_cases.ports import LoggedPrediction, UnitOfWork
from headrace.inference.use_cases.table_ports import LogTables
from headrace.runtime.clock import Clock

FAR_FUTURE = datetime(9999, 1, 1, tzinfo=UTC)
LAST_ID = "ffffffff-ffff-ffff-ffff-ffffffffffff"


class Deployments:
    """Everything that users change or read; `rollouts.Reconciler` makes it so."""

    def __init__(self, work: UnitOfWork, clock: Clock, tables: LogTables) -> None:
        self._work = work
        self._clock = clock
        self._tables = tables

    async def apply(
        self,
        name: str,
        model: str,
        plan: Plan,
        drift: DriftRules,
        serving: ServingChange = UNCHANGED,
        scaling: Scaling | None = None,
    ) -> tuple[Deployment, list[ServedVersion]]:
        """Create a deployment that follows a model's promoted versions, or change how it treats them.

        `scaling`: None leaves it as it is. Raises InvalidArgument/INVALID_SERVING for settings that Triton
        cannot take, InvalidArgument/INVALID_SCALING for bounds that cannot be kept. Raises
        FailedPrecondition/LOG_DATASET_TAKEN for predictions that are to go to a dataset which holds something
        else, and Unavailable where ingestion cannot say that. Raises
        FailedPrecondition/DEPLOYMENT_OF_OTHER_MODEL for a name that serves another model: the two models'
        versions have the same numbers, and what is loaded and rolled out is known by number.
        """
        if serving.log is not None and serving.log.dataset:
            await self._tables.check(serving.log.dataset)
        now = self._clock()
        async with self._work() as work:
            known = await work.rows.create_or_lock_deployment(name, model, plan, now)
            if known.model != model:
                raise _of_other_model(known, model)
            wanted = checked(serving.of(Serving() if known.deleted else known.serving))
            bounds = EVERYWHERE if scaling is None and known.deleted else scaling
            if bounds is not None:
                checked_scaling(bounds)
            if known.deleted:
                await work.rows.revive_deployment(name)
            await work.rows.change_plan(name, plan, now)
            await work.rows.change_drift_rules(name, drift)
            if wanted != known.serving:
                await work.rows.change_serving(name, wanted, now)
            if bounds is not None and bounds != known.scaling:
                await work.rows.change_scaling(name, bounds, now)
                if known.deleted or known.is_new:
                    # Nowhere, until there is something to load and the scaler has found a place.
                    await work.rows.change_scale(name, NOWHERE)
                    await work.rows.record_placed(name, NOWHERE, now)
            await work.changed(name)
        return await self.get(name)

    async def serve(self, name: str, serving: Serving) -> None:
        """Serve a deployment so from now on, and log as before.

        Raises NotFound, InvalidArgument/INVALID_SERVING.
        """
        async with self._work() as work:
            await work.rows.deployment(name)
            known = await work.rows.deployment(name, lock=True)
            wanted = checked(replace(serving, log=known.serving.log))
            await work.rows.change_serving(name, wanted, self._clock())
            await work.changed(name)

    async def get(self, name: str) -> tuple[Deployment, list[ServedVersion]]:
        """One deployment and its model's versions. Raises NotFound."""
        async with self._work.reading() as work:
            deployment = await work.rows.deployment(name)
            return deployment, await work.rows.served_versions(deployment.model)

    async def list_all(self, after: str, limit: int) -> list[tuple[Deployment, list[ServedVersion]]]:
        """Deployments by name."""
        async with self._work.reading() as work:
            return [
                (deployment, await work.rows.served_versions(deployment.model))
                for deployment in await work.rows.deployments(after, limit)
            ]

    async def delete(self, name: str) -> None:
        """Take a deployment away; the reconciler removes its routes, then its models. Raises NotFound."""
        async with self._work() as work:
            await work.rows.deployment(name)
            deployment = await work.rows.deployment(name, lock=True)
            gone = replace(deployment, traffic={}, deleted=True, message="deleted", update_time=self._clock())
            await work.rows.save_deployment(gone)
            await work.changed(name)

    async def abort_rollout(self, name: str) -> tuple[Deployment, list[ServedVersion]]:
        """Take the traffic back. Raises NotFound, FailedPrecondition/NO_ROLLOUT."""
        return await self._steer(name, lambda rollout: aborted(rollout, self._clock()))

    async def pause_rollout(self, name: str) -> tuple[Deployment, list[ServedVersion]]:
        """Keep a rollout where it is. Raises NotFound, FailedPrecondition/NO_ROLLOUT."""
        return await self._steer(name, lambda rollout: replace(rollout, paused=True))

    async def resume_rollout(self, name: str) -> tuple[Deployment, list[ServedVersion]]:
        """Let a paused rollout go on. Raises NotFound, FailedPrecondition/NO_ROLLOUT."""
        return await self._steer(name, lambda rollout: replace(rollout, paused=False))

    async def promote_rollout(self, name: str) -> tuple[Deployment, list[ServedVersion]]:
        """Give a rollout's version all traffic.

        Raises NotFound, FailedPrecondition/NO_ROLLOUT, FailedPrecondition/ROLLOUT_LOADING.
        """
        return await self._steer(name, lambda rollout: promoted(rollout, self._clock()))

    async def _steer(
        self, name: str, change: Callable[[Rollout], Rollout]
    ) -> tuple[Deployment, list[ServedVersion]]:
        async with self._work() as work:
            await work.rows.deployment(name)
            deployment = await work.rows.deployment(name, lock=True)
            if deployment.rollout is None or deployment.rollout.state.ended:
                raise FailedPrecondition("NO_ROLLOUT", f"deployment {name} has no rollout in progress")
            rollout = change(deployment.rollout)
            await work.rows.put_rollout(rollout)
            await work.rows.save_deployment(
                replace(deployment, traffic=weights(rollout), update_time=self._clock())
            )
            await work.changed(name)
        return await self.get(name)

    async def rollouts(self, name: str, before: datetime | None, before_id: str, limit: int) -> list[Rollout]:
        """A deployment's rollouts, newest first. Raises NotFound."""
        async with self._work() as work:
            await work.rows.deployment(name)
            return await work.rows.rollouts(name, before or FAR_FUTURE, before_id or LAST_ID, limit)

    async def predictions(
        self, name: str, before: datetime | None, before_id: str, limit: int
    ) -> list[LoggedPrediction]:
        """A deployment's predictions, newest first. Raises NotFound."""
        async with self._work() as work:
            await work.rows.deployment(name)
            return await work.rows.predictions(name, before or FAR_FUTURE, before_id or LAST_ID, limit)


def _of_other_model(known: Deployment, model: str) -> FailedPrecondition:
    what_to_do = (
        "it is being removed: apply it again in a few seconds"
        if known.deleted
        else f"delete it first, or deploy {model} under another name"
    )
    return FailedPrecondition(
        "DEPLOYMENT_OF_OTHER_MODEL",
        f"deployment {known.name} serves model {known.model}, not {model}; {what_to_do}",
    )
