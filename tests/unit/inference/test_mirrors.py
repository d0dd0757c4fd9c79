"""What Envoy is told of versions that are being rolled out."""

from __future__ import annotations

import re

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf import json_format

from headrace.embedded.parts.triton import FORWARDED_HEADERS
from headrace.inference.domain.trials import Audience, Trial
from headrace.inference.use_cases.ports import Route
from headrace.inference.xds import mirrors
from headrace.inference.xds.resources import CLUSTER, ROUTES, ROUTES_NAME, Wiring, resources
from headrace.runtime.resources import deploy_path

WIRING = Wiring(listen="127.0.0.1:1", triton_grpc="127.0.0.1:2", triton_http="127.0.0.1:3")
HEADERS = (mirrors.MIRROR_CLUSTER_HEADER, mirrors.SHADOW_VERSION_HEADER, mirrors.MIRROR_ID_HEADER)


def test_each_of_tritons_clusters_has_a_mirror_whose_requests_are_stamped_again() -> None:
    clusters = resources(WIRING, {})[CLUSTER]
    assert set(clusters) == {"triton-grpc", "triton-http", "triton-grpc-mirror", "triton-http-mirror"}
    for name in ("triton-grpc", "triton-http"):
        live, mirror = cluster_pb2.Cluster(), cluster_pb2.Cluster()
        clusters[name].Unpack(live)
        clusters[f"{name}-mirror"].Unpack(mirror)
        assert mirror.load_assignment.endpoints == live.load_assignment.endpoints
        [options] = mirror.typed_extension_protocol_options.values()
        unpacked = http_protocol_options_pb2.HttpProtocolOptions()
        options.Unpack(unpacked)
        assert [filter_.name for filter_ in unpacked.http_filters] == [
            "envoy.filters.http.lua",
            "envoy.filters.http.upstream_codec",
        ]
        speaks_http2 = unpacked.explicit_http_config.HasField("http2_protocol_options")
        assert speaks_http2 == (name == "triton-grpc")


def test_the_stamp_is_told_how_requests_meet_a_version_beside_its_share() -> None:
    routes = {
        "plain": Route({3: 100}, ""),
        "shadowed": Route({3: 100}, "", Trial(4, mirrored=25)),
        "split": Route(
            {3: 50, 4: 50},
            "",
            Trial(4, sticky_header="x-user-id", audience=Audience("x-cohort", frozenset({"staff", "beta"}))),
        ),
    }
    configuration = route_pb2.RouteConfiguration()
    resources(WIRING, routes)[ROUTES][ROUTES_NAME].Unpack(configuration)
    route = next(r for r in configuration.virtual_hosts[0].routes if r.match.path.endswith("/ModelInfer"))
    known = json_format.MessageToDict(route.metadata.filter_metadata["envoy.filters.http.lua"])
    assert "trial" not in known["plain"]
    assert known["shadowed"]["trial"] == {"version": "4", "mirrored": 25}
    assert known["split"]["trial"] == {
        "version": "4",
        "sticky": "x-user-id",
        "header": "x-cohort",
        "values": {"beta": True, "staff": True},
    }
    assert route.route.request_mirror_policies[0].cluster_header == mirrors.MIRROR_CLUSTER_HEADER


def test_scripts_clusters_and_triton_call_headers_and_clusters_the_same() -> None:
    stamp = deploy_path("envoy/version_stamp.lua").read_text()
    again = deploy_path("envoy/mirror_stamp.lua").read_text()
    assert set(re.findall(r'"(x-headrace-[\w-]+)"', stamp)) >= set(HEADERS)
    assert re.findall(r'"(x-headrace-[\w-]+)"', again) == [mirrors.SHADOW_VERSION_HEADER]
    assert set(re.findall(r'"(triton-\w+-mirror)"', stamp)) <= set(resources(WIRING, {})[CLUSTER])
    assert set(FORWARDED_HEADERS.split("|")) == {"traceparent", *HEADERS[1:]}
    model = deploy_path("triton/model.py").read_text()
    assert set(re.findall(r'"(x-headrace-[\w-]+)"', model)) == set(HEADERS[1:])
