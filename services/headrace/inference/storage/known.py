"""What is read again and again, of all deployments: only what has changed is read from the database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, Generic, TypeVar

import asyncpg

from headrace.inference.domain.deployments import Deployment, ServedVersion
from headrace.inference.domain.rollouts import Rollout
from headrace.inference.storage.rows import deployment_of, rollout_of, served_version_of
from headrace.postgres import Connection
from headrace.postgres.queries import load_queries

QUERIES: Final = load_queries("headrace.inference.storage")

V = TypeVar("V")


class KnownRows(Generic[V]):
    """A table's rows as objects.

    A row's state is PostgreSQL's own name of it, `xmin` and `ctid`: every update gives it another one.
    """

    def __init__(self, states: str, rows: str, parse: Callable[[asyncpg.Record], V]) -> None:
        """Queries: `row_key` and `row_state` of all; and rows with both, by keys."""
        self._states = QUERIES[states]
        self._rows = QUERIES[rows]
        self._parse = parse
        self._known: dict[str, tuple[str, V]] = {}

    async def read(self, connection: Connection) -> dict[str, V]:
        """All of them, by key, in the order of the first query."""
        states = await connection.fetch(self._states)
        known = {key: self._known[key] for key, _ in states if key in self._known}
        lacking = [key for key, state in states if key not in known or known[key][0] != state]
        if lacking:
            for row in await connection.fetch(self._rows, lacking):
                known[row["row_key"]] = (row["row_state"], self._parse(row))
        self._known = known
        # What was removed between the two queries is not there.
        return {key: known[key][1] for key, _ in states if key in known}


class Known:
    """Deployments with their last rollouts, and versions, as they were read last."""

    def __init__(self) -> None:
        self._deployments = KnownRows(
            "deployment_states", "deployments_by_key", lambda row: deployment_of(row, None)
        )
        self._rollouts = KnownRows("last_rollout_states", "last_rollouts", rollout_of)
        self._versions = KnownRows("served_version_states", "served_versions_by_key", served_version_of)
        self._together: dict[str, tuple[Deployment, Rollout | None, Deployment]] = {}

    async def deployments(self, connection: Connection) -> list[Deployment]:
        """Every deployment, by name; one that has not changed is the same object as before."""
        deployments = await self._deployments.read(connection)
        rollouts = await self._rollouts.read(connection)
        together = {}
        for name, deployment in deployments.items():
            rollout = rollouts.get(name)
            known = self._together.get(name)
            if known is None or known[0] is not deployment or known[1] is not rollout:
                known = deployment, rollout, replace(deployment, rollout=rollout)
            together[name] = known
        self._together = together
        return [whole for _, _, whole in together.values()]

    async def versions(self, connection: Connection) -> dict[str, list[ServedVersion]]:
        """Every model's promoted versions, oldest first."""
        versions: dict[str, list[ServedVersion]] = {}
        for version in (await self._versions.read(connection)).values():
            versions.setdefault(version.model, []).append(version)
        return versions
