"""Delta discovery: what an Envoy is sent, and what its answers mean."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from envoy.service.discovery.v3 import discovery_pb2

from headrace.inference.domain.trials import Trial
from headrace.inference.use_cases.ports import Route
from headrace.inference.xds.clusters import TRITON_GRPC, TRITON_HTTP, clusters
from headrace.inference.xds.resources import CLUSTER, LISTENER, ORDER, ROUTES
from headrace.inference.xds.routes import SHARDS, shard_name, shard_of
from headrace.inference.xds.server import ControlPlane, Peer
from headrace.inference.xds.wiring import TritonAddress, Wiring
from headrace.runtime.resources import deploy_path

WIRING = Wiring("127.0.0.1:8080", (TritonAddress("127.0.0.1:8001", "127.0.0.1:8000"),))


def routed(names: list[str]) -> ControlPlane:
    control_plane = ControlPlane(WIRING)
    control_plane.update({name: Route({1: 100}, "") for name in names})
    return control_plane


def connected(control_plane: ControlPlane) -> Peer:
    """An Envoy that asked for everything and took what it was sent."""
    peer = Peer()
    for kind in ORDER:
        peer.hear(discovery_pb2.DeltaDiscoveryRequest(type_url=kind, resource_names_subscribe=["*"]))
    for response in sent(control_plane, peer):
        answer(peer, response)
    return peer


def sent(control_plane: ControlPlane, peer: Peer) -> list[discovery_pb2.DeltaDiscoveryResponse]:
    found = (peer.delta(kind, control_plane.snapshot[kind]) for kind in ORDER)
    return [response for response in found if response is not None]


def answer(peer: Peer, response: discovery_pb2.DeltaDiscoveryResponse, refusal: str = "") -> None:
    request = discovery_pb2.DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
    if refusal:
        request.error_detail.message = refusal
    peer.hear(request)


def test_a_change_of_one_deployment_sends_its_shard_alone() -> None:
    names = [f"model-{number}" for number in range(1000)]
    control_plane = routed(names)
    peer = connected(control_plane)
    routes = {name: Route({1: 100}, "") for name in names} | {"model-7": Route({1: 50, 2: 50}, "")}
    control_plane.update(routes)
    [response] = sent(control_plane, peer)
    assert response.type_url == ROUTES
    assert [resource.name for resource in response.resources] == [shard_name(shard_of("model-7"))]
    control_plane.update(dict(routes))
    assert sent(control_plane, peer) == []
    del routes["model-7"]
    control_plane.update(routes)
    assert [resource.name for resource in sent(control_plane, peer)[0].resources] == [
        shard_name(shard_of("model-7"))
    ]


def test_deployments_that_changed_are_routed_without_the_others() -> None:
    names = [f"model-{number}" for number in range(1000)]
    control_plane = ControlPlane(WIRING)
    # Not a word before all are known: an Envoy would drop the others.
    control_plane.change({"model-7": Route({9: 100}, "")})
    assert control_plane.snapshot[ROUTES] == ControlPlane(WIRING).snapshot[ROUTES]
    control_plane.update({name: Route({1: 100}, "") for name in names})
    peer = connected(control_plane)
    control_plane.change({"model-7": Route({2: 100}, ""), "model-8": Route({1: 100}, ""), "nobody": None})
    [response] = sent(control_plane, peer)
    assert [resource.name for resource in response.resources] == [shard_name(shard_of("model-7"))]
    control_plane.change({"model-7": None})
    assert len(sent(control_plane, peer)) == 1
    assert control_plane.scale("model-7") is None
    assert set(control_plane.routes) == {*names} - {"model-7"}


def test_what_an_envoy_refused_is_told_where_it_matters_until_it_takes_it() -> None:
    one, other = "model-1", "model-2"
    assert shard_of(one) != shard_of(other)
    control_plane = routed([one, other])
    peer = connected(control_plane)
    control_plane.update({one: Route({2: 100}, ""), other: Route({1: 100}, "")})
    [response] = sent(control_plane, peer)
    name, neighbour = shard_name(shard_of(one)), shard_name(shard_of(other))
    assert "has not taken" in peer.problem(control_plane.snapshot, name)
    answer(peer, response, refusal="no such thing")
    assert peer.problem(control_plane.snapshot, name).endswith("refused its configuration: no such thing")
    assert peer.problem(control_plane.snapshot, neighbour) == ""
    # Another answer of the kind says nothing about it.
    control_plane.update({one: Route({2: 100}, ""), other: Route({3: 100}, "")})
    [response] = sent(control_plane, peer)
    answer(peer, response)
    assert "no such thing" in peer.problem(control_plane.snapshot, name)
    control_plane.update({one: Route({3: 100}, ""), other: Route({3: 100}, "")})
    [response] = sent(control_plane, peer)
    answer(peer, response)
    assert peer.problem(control_plane.snapshot, name) == ""


def test_a_shadow_that_envoy_was_not_told_of_is_not_called_routed() -> None:
    control_plane = routed(["m"])
    control_plane._peers.add(connected(control_plane))
    route = Route({1: 100}, "")
    assert control_plane.problem("m", route) == ""
    assert "being told" in control_plane.problem("m", replace(route, trial=Trial(2, mirrored=100)))
    assert "being told" in control_plane.problem("another", route)


def test_what_was_refused_together_is_sent_again_one_by_one() -> None:
    names = ("model-1", "model-2", "model-3")
    shards = [shard_name(shard_of(name)) for name in names]
    control_plane = routed(names)
    peer = connected(control_plane)
    control_plane.update({name: Route({2: 100}, "") for name in names})
    [response] = sent(control_plane, peer)
    answer(peer, response, refusal="one of them is wrong")
    assert "has not taken" in peer.problem(control_plane.snapshot, shards[0])
    found = []
    while responses := sent(control_plane, peer):
        [response] = responses
        [resource] = response.resources
        found.append(resource.name)
        answer(peer, response, refusal="wrong" if resource.name == shards[0] else "")
    assert sorted(found) == sorted(shards)
    assert peer.problem(control_plane.snapshot, shards[0]).endswith("refused its configuration: wrong")
    assert [peer.problem(control_plane.snapshot, shard) for shard in shards[1:]] == ["", ""]


def test_an_envoy_that_comes_back_is_sent_what_it_lacks() -> None:
    control_plane = routed(["model-1"])
    versions = {
        name: versioned.version
        for name, versioned in control_plane.snapshot[ROUTES].items()
        if name != shard_name(3)
    }
    peer = Peer()
    peer.hear(
        discovery_pb2.DeltaDiscoveryRequest(
            type_url=ROUTES, initial_resource_versions={**versions, "gone": "1"}
        )
    )
    [response] = sent(control_plane, peer)
    assert [resource.name for resource in response.resources] == [shard_name(3)]
    assert response.removed_resources == ["gone"]


def test_one_version_answers_all_where_no_other_has_a_share_or_is_tried() -> None:
    control_plane = ControlPlane(WIRING)
    control_plane.update(
        {
            "whole": Route({1: 100}, ""),
            "shared": Route({1: 90, 2: 10}, ""),
            "shadowed": Route({1: 100}, "", Trial(2, mirrored=50)),
        }
    )
    found = {name: control_plane.has_one_version(name) for name in ("whole", "shared", "shadowed", "gone")}
    assert found == {"whole": True, "shared": False, "shadowed": False, "gone": False}


def test_nothing_is_named_before_it_is_there() -> None:
    control_plane = routed([])
    peer = Peer()
    for kind in (ROUTES, LISTENER, CLUSTER):
        peer.hear(discovery_pb2.DeltaDiscoveryRequest(type_url=kind, resource_names_subscribe=["*"]))
    kinds = [response.type_url for response in sent(control_plane, peer)]
    assert kinds == [CLUSTER, LISTENER, ROUTES]


def test_triton_is_sent_the_largest_request_without_a_stop() -> None:
    found = clusters(WIRING)
    assert {document["name"] for document in found} > {TRITON_GRPC, TRITON_HTTP}
    assert {document["per_connection_buffer_limit_bytes"] for document in found} == {WIRING.max_request_bytes}


def test_deployments_are_spread_over_as_many_shards_as_the_version_stamp_knows() -> None:
    source = deploy_path("envoy/version_stamp.lua").read_text()
    assert re.findall(r"SHARDS = (\d+)", source) == [str(SHARDS)]
    shards = Counter(shard_of(f"model-{number}") for number in range(10_000))
    assert len(shards) == SHARDS
    assert max(shards.values()) < 3 * 10_000 / SHARDS
