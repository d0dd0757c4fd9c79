"""The scaler on several servers: who goes where, who makes room, and who is told that there is none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

from headrace.inference.domain.deployments import Deployment, ServedVersion
from headrace.inference.domain.placement import MIB, PROCESS_BYTES
from headrace.inference.domain.rollouts import Plan, Rollout, RolloutState
from headrace.inference.domain.scaling import MAX_REPLICAS, NOWHERE, Scale, Scaling
from headrace.inference.domain.trials import Shadow
from headrace.inference.use_cases.ports import Loaded, WorkDone
from headrace.inference.use_cases.scale import WARM_SECONDS, Scaler
from headrace.model_formats import ModelFormat

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SERVERS = 2
EACH = PROCESS_BYTES[ModelFormat.ONNX]
ON_DEMAND = Scaling(0, 1)


class World:
    """Deployments of one version, and servers that do what the scaler says, at once."""

    def __init__(self, *, memory: int = 0) -> None:
        self.deployments: dict[str, Deployment] = {}
        self.there: dict[str, frozenset[int]] = {}
        self.requests: dict[str, int] = {}
        self.up = frozenset(range(SERVERS))
        self.time = 0.0
        work, server = cast("Any", self.work), cast("Any", self)
        self.scaler = Scaler(work, server, changed=lambda: None, memory=memory, clock=lambda: self.time)

    count = SERVERS

    def add(self, name: str, scaling: Scaling, scale: Scale = NOWHERE) -> None:
        self.deployments[name] = Deployment(
            name, name, Plan(), NOW, NOW, traffic={1: 100}, scaling=scaling, scale=scale, placed=scale
        )

    def change(self, name: str, **fields: Any) -> None:
        self.deployments[name] = replace(self.deployments[name], **fields)

    async def look(self, *, seconds: float = 1.0, goes: bool = True) -> None:
        """Let the scaler look, and servers load what it says, and unload it where it `goes`."""
        self.time += seconds
        await self.scaler.look()
        for name, deployment in self.deployments.items():
            wanted = deployment.scale.servers(SERVERS)
            self.there[name] = wanted if goes else self.there.get(name, frozenset()) | wanted

    def on(self, name: str) -> frozenset[int]:
        return self.deployments[name].scale.servers(SERVERS)

    async def work_done(self) -> WorkDone:
        return WorkDone(dict(self.requests), {}, {}, self.up)

    async def loaded(self) -> dict[str, Loaded]:
        one = frozenset({1})
        return {
            name: Loaded(tuple(one if at in there else frozenset() for at in range(SERVERS)))
            for name, there in self.there.items()
        }

    @asynccontextmanager
    async def work(self) -> AsyncIterator[Any]:
        yield SimpleNamespace(rows=self)

    async def all_deployments(self) -> list[Deployment]:
        return list(self.deployments.values())

    async def all_served_versions(self) -> dict[str, list[ServedVersion]]:
        return {
            name: [ServedVersion(name, 1, "file:///m", "", (), (), (), b"", "")] for name in self.deployments
        }

    async def change_scale(self, name: str, scale: Scale) -> None:
        self.change(name, scale=scale, demanded=False)

    async def deployment(self, name: str, *, lock: bool) -> Deployment:
        return self.deployments[name]

    async def save_deployment(self, deployment: Deployment) -> None:
        self.deployments[deployment.name] = deployment


async def test_deployments_are_spread_and_come_when_they_are_asked_for() -> None:
    world = World(memory=10 * EACH)
    for name in ("a", "b"):
        world.add(name, ON_DEMAND)
    await world.look()
    assert not world.on("a")
    for name in ("a", "b"):
        world.change(name, demanded=True)
        await world.look()
    assert world.on("a") | world.on("b") == {0, 1}


async def test_what_is_on_a_server_that_is_gone_is_loaded_on_another() -> None:
    world = World()
    world.add("a", Scaling(1, 1), Scale(1))
    await world.look()
    world.up = frozenset({1})
    await world.look()
    assert world.on("a") == {1}


async def test_who_was_not_asked_for_longest_goes_and_the_other_comes_when_it_has_gone() -> None:
    world = World(memory=EACH + MIB)
    for at, name in enumerate(("old", "new")):
        world.add(name, ON_DEMAND, Scale(1, first=at))
    world.add("wanted", ON_DEMAND)
    await world.look(seconds=WARM_SECONDS)
    world.requests["new"] = 1
    await world.look()
    world.change("wanted", demanded=True)
    # Nobody's model goes that was asked a moment ago.
    await world.look(seconds=WARM_SECONDS - 0.5, goes=False)
    assert (world.on("old"), world.on("new")) == (frozenset(), {1})
    # It is still there.
    await world.look(goes=False)
    assert world.on("wanted") == frozenset()
    await world.look()
    await world.look()
    assert (world.on("wanted"), world.on("new")) == ({0}, {1})


async def test_where_there_is_no_room_the_deployment_says_so_and_comes_when_there_is() -> None:
    world = World(memory=EACH + MIB)
    for at, name in enumerate(("one", "other")):
        world.add(name, Scaling(1, 1), Scale(1, first=at))
    world.add("wanted", ON_DEMAND)
    world.change("wanted", demanded=True)
    await world.look()
    assert world.on("wanted") == frozenset()
    assert "no room: it takes about 64 MiB of a server's 65" in world.deployments["wanted"].message
    del world.deployments["one"], world.there["one"]
    await world.look()
    assert world.on("wanted") == {0}


async def test_a_version_that_is_rolled_out_is_loaded_and_for_a_shadow_everywhere() -> None:
    world = World()
    world.add("a", ON_DEMAND)
    rollout = Rollout("1", "a", 1, 2, RolloutState.LOADING, "", NOW, NOW)
    world.change("a", rollout=rollout)
    await world.look()
    assert len(world.on("a")) == 1
    world.change("a", plan=Plan(shadow=Shadow(100, timedelta(seconds=1))))
    await world.look()
    assert world.deployments["a"].scale.replicas == MAX_REPLICAS
    world.change("a", rollout=replace(rollout, state=RolloutState.SUCCEEDED))
    await world.look()
    assert len(world.on("a")) == 1
    idle = ON_DEMAND.idle.total_seconds()
    await world.look()
    await world.look(seconds=idle - 2)
    assert len(world.on("a")) == 1
    await world.look(seconds=3)
    assert world.on("a") == frozenset()
