"""Several Triton servers are one, and one that is away or lacks a version holds nobody up."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from headrace.errors import Unavailable
from headrace.inference.domain.analysis import Outcomes
from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.domain.serving import DEFAULTS, Serving
from headrace.inference.triton.counts import ServerWork
from headrace.inference.triton.fleet import TritonFleet
from headrace.inference.use_cases.ports import Loaded, LoadError

BOTH = frozenset({0, 1})


class Folder:
    """The repository, as the servers see it."""

    def __init__(self) -> None:
        self.versions: dict[str, frozenset[int]] = {}
        self.serving: dict[str, str] = {}
        self.kept: dict[str, frozenset[int]] = {}

    async def put(self, deployment: str, versions: Sequence[ServedVersion], serving: Serving) -> None:
        self.versions[deployment] = frozenset(version.version for version in versions)
        self.serving[deployment] = serving.text()

    def drop_others(self, deployment: str, versions: Sequence[ServedVersion]) -> None:
        self.kept[deployment] = frozenset(version.version for version in versions)

    def remove(self, deployment: str) -> None:
        del self.versions[deployment]


class Server:
    """A server that can be away, and can refuse to load."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.has: dict[str, frozenset[int]] = {}
        self.served: dict[str, str] = {}
        self.lost: dict[str, frozenset[int]] = {}
        self.counts: dict[int, Outcomes] = {}
        self.work: dict[str, ServerWork] = {}
        self.away = False
        self.refuses = False
        self.loads = 0

    def answer(self) -> None:
        if self.away:
            raise Unavailable("TRITON_UNAVAILABLE", "Triton does not answer")

    async def loaded(self) -> dict[str, frozenset[int]]:
        self.answer()
        return dict(self.has)

    def died(self) -> dict[str, frozenset[int]]:
        return self.lost

    async def serving(self, deployment: str) -> str:
        self.answer()
        return self.served[deployment]

    async def load(self, deployment: str) -> None:
        self.answer()
        if self.refuses:
            raise LoadError("too little memory")
        self.loads += 1
        self.has[deployment] = self.folder.versions[deployment]
        self.served[deployment] = self.folder.serving[deployment]

    async def unload(self, deployment: str) -> None:
        self.answer()
        self.has.pop(deployment, None)

    async def outcomes(self, deployment: str) -> dict[int, Outcomes]:
        self.answer()
        return self.counts

    async def work_done(self) -> dict[str, ServerWork]:
        self.answer()
        return self.work


@pytest.fixture
def folder() -> Folder:
    return Folder()


@pytest.fixture
def servers(folder: Folder) -> list[Server]:
    return [Server(folder), Server(folder)]


@pytest.fixture
def fleet(servers: list[Server], folder: Folder) -> TritonFleet:
    return TritonFleet(servers, folder)


def versions(*numbers: int) -> list[ServedVersion]:
    return [ServedVersion("m", number, "file:///m", "", (), (), (), b"", "") for number in numbers]


async def test_what_is_loaded_everywhere_and_what_somewhere(
    fleet: TritonFleet, servers: list[Server]
) -> None:
    servers[0].has = {"both": frozenset({1, 2}), "one": frozenset({1})}
    servers[1].has = {"both": frozenset({1})}
    assert await fleet.loaded() == {
        "both": Loaded((frozenset({1, 2}), frozenset({1}))),
        "one": Loaded((frozenset({1}), frozenset())),
    }
    both = (await fleet.loaded())["both"]
    assert (both.on({0, 1}), both.on({0}), both.anywhere) == ({1}, {1, 2}, {1, 2})
    assert [both.outside(servers) for servers in ({0, 1}, {0}, ())] == [False, True, True]


async def test_a_version_that_died_on_one_server_is_somewhere_and_not_everywhere(
    fleet: TritonFleet, servers: list[Server]
) -> None:
    servers[0].has = {"live": frozenset({1, 2})}
    servers[1].has, servers[1].lost = {"live": frozenset({1})}, {"live": frozenset({2})}
    assert await fleet.loaded() == {
        "live": Loaded((frozenset({1, 2}), frozenset({1})), died=frozenset({2})),
    }
    live = (await fleet.loaded())["live"]
    assert (live.on({0, 1}), live.anywhere) == ({1}, {1, 2})


async def test_a_server_that_is_away_is_left_out_and_given_what_it_lacks_when_it_is_back(
    fleet: TritonFleet, servers: list[Server]
) -> None:
    there, away = servers
    away.away = True
    await fleet.load("m", versions(1, 2), DEFAULTS, BOTH)
    assert (await fleet.loaded())["m"] == Loaded((frozenset({1, 2}), None))
    assert (await fleet.loaded())["m"].on(BOTH) == {1, 2}
    away.away = False
    assert (await fleet.loaded())["m"].on(BOTH) == frozenset()
    await fleet.load("m", versions(1, 2), DEFAULTS, BOTH)
    assert (await fleet.loaded())["m"].on(BOTH) == {1, 2}
    # What answers already is not started anew.
    assert (there.loads, away.loads) == (1, 1)


async def test_what_answers_otherwise_than_wanted_is_loaded_anew(
    fleet: TritonFleet, servers: list[Server]
) -> None:
    await fleet.load("m", versions(1), DEFAULTS, BOTH)
    await fleet.load("m", versions(1), Serving(instances=2), BOTH)
    await fleet.load("m", versions(1), Serving(instances=2), BOTH)
    assert [server.loads for server in servers] == [2, 2]


async def test_while_none_answers_that_is_said(fleet: TritonFleet, servers: list[Server]) -> None:
    for server in servers:
        server.away = True
    for call in (fleet.loaded(), fleet.load("m", versions(1), DEFAULTS, BOTH), fleet.outcomes("m")):
        with pytest.raises(Unavailable):
            await call


async def test_a_version_that_one_server_refuses_does_not_load_and_no_file_goes(
    fleet: TritonFleet, servers: list[Server], folder: Folder
) -> None:
    await fleet.load("m", versions(1), DEFAULTS, BOTH)
    servers[1].refuses = True
    with pytest.raises(LoadError, match="too little memory"):
        await fleet.load("m", versions(1, 2), DEFAULTS, BOTH)
    assert folder.kept["m"] == {1}
    found = (await fleet.loaded())["m"]
    assert found == Loaded((frozenset({1, 2}), frozenset({1})))


async def test_a_deployment_goes_to_the_servers_that_are_named_and_leaves_the_others(
    fleet: TritonFleet, servers: list[Server]
) -> None:
    await fleet.load("m", versions(1), DEFAULTS, {1})
    assert [server.has for server in servers] == [{}, {"m": {1}}]
    await fleet.load("m", versions(1), DEFAULTS, {0})
    await fleet.leave("m", {0})
    assert [server.has for server in servers] == [{"m": {1}}, {}]


async def test_work_adds_up_over_servers_and_goes_on_when_one_begins_anew(
    fleet: TritonFleet, servers: list[Server]
) -> None:
    servers[0].work = {"m": ServerWork(10, 1.0, 2.0)}
    servers[1].work = {"m": ServerWork(5, 0.5, 1.0)}
    done = await fleet.work_done()
    assert (done.requests, done.queued, done.busy, done.up) == ({"m": 15}, {"m": 1.5}, {"m": 3.0}, BOTH)
    servers[0].work = {"m": ServerWork(2, 0.25, 0.5)}
    servers[1].away = True
    done = await fleet.work_done()
    assert (done.requests, done.queued, done.busy, done.up) == ({"m": 17}, {"m": 1.75}, {"m": 3.5}, {0})


async def test_a_deployment_is_unloaded_from_all(
    fleet: TritonFleet, servers: list[Server], folder: Folder
) -> None:
    await fleet.load("m", versions(1), DEFAULTS, BOTH)
    await fleet.unload("m")
    assert await fleet.loaded() == {}
    assert folder.versions == {}


async def test_outcomes_are_those_of_all_servers(fleet: TritonFleet, servers: list[Server]) -> None:
    servers[0].counts = {1: Outcomes(5, 1), 2: Outcomes(2, 0)}
    servers[1].counts = {1: Outcomes(7, 0)}
    assert await fleet.outcomes("m") == {1: Outcomes(12, 1), 2: Outcomes(2, 0)}


async def test_outcomes_are_not_taken_back_when_a_server_is_away_or_begins_anew(
    fleet: TritonFleet, servers: list[Server]
) -> None:
    servers[0].counts = {1: Outcomes(5, 1)}
    servers[1].counts = {1: Outcomes(7, 0)}
    await fleet.outcomes("m")
    servers[1].away = True
    assert await fleet.outcomes("m") == {1: Outcomes(12, 1)}
    servers[1].away = False
    servers[1].counts = {}
    assert await fleet.outcomes("m") == {1: Outcomes(12, 1)}
    servers[1].counts = {1: Outcomes(2, 1)}
    assert await fleet.outcomes("m") == {1: Outcomes(14, 2)}
    servers[1].counts = {1: Outcomes(1, 0)}
    assert await fleet.outcomes("m") == {1: Outcomes(15, 2)}
