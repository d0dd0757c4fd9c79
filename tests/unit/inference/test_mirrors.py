"""What Envoy is told of versions that are being rolled out."""

from __future__ import annotations

import re

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf import json_format

from headrace.embedded.parts.triton import FORWARDED_HEADERS
from headrace.inference.domain.trials import Audience, Trial
from headrace.inference.xds import mirrors
from headrace.runtime.resources import deploy_path

HEADERS = (mirrors.MIRROR_CLUSTER_HEADER, mirrors.SHADOW_VERSION_HEADER, mirrors.MIRROR_ID_HEADER)
OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def a_cluster(*, http2: bool) -> mirrors.Document:
    cluster: mirrors.Document = {
        "name": "triton",
        "load_assignment": {"cluster_name": "triton"},
        "per_connection_buffer_limit_bytes": 1 << 20,
    }
    if http2:
        cluster["typed_extension_protocol_options"] = {
            OPTIONS: {
                "@type": f"type.googleapis.com/{OPTIONS}",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
    return cluster


@pytest.mark.parametrize("http2", [False, True])
def test_a_mirrors_requests_are_stamped_again_and_their_number_has_a_bound(http2: bool) -> None:
    live = a_cluster(http2=http2)
    cluster = json_format.ParseDict(mirrors.mirror_cluster(live), cluster_pb2.Cluster())
    assert live == a_cluster(http2=http2)
    assert cluster.name == cluster.load_assignment.cluster_name == "triton-mirror"
    assert cluster.circuit_breakers.thresholds[0].max_requests.value == mirrors.MAX_MIRRORED
    assert cluster.per_connection_buffer_limit_bytes.value == 1 << 20
    options = http_protocol_options_pb2.HttpProtocolOptions()
    assert cluster.typed_extension_protocol_options[OPTIONS].Unpack(options)
    assert options.explicit_http_config.HasField("http2_protocol_options") == http2
    assert [filter_.name for filter_ in options.http_filters] == [
        "envoy.filters.http.lua",
        "envoy.filters.http.upstream_codec",
    ]


def test_the_stamp_is_told_how_requests_meet_a_version_beside_its_share() -> None:
    assert mirrors.trial_document(None) == {}
    assert mirrors.trial_document(Trial(4, mirrored=25)) == {"trial": {"version": "4", "mirrored": 25}}
    audience = Audience("x-cohort", frozenset({"staff", "beta"}))
    assert mirrors.trial_document(Trial(4, sticky_header="x-user-id", audience=audience)) == {
        "trial": {
            "version": "4",
            "sticky": "x-user-id",
            "header": "x-cohort",
            "values": {"beta": True, "staff": True},
        }
    }


def test_scripts_clusters_and_triton_call_headers_and_clusters_the_same() -> None:
    stamp = deploy_path("envoy/version_stamp.lua").read_text()
    again = deploy_path("envoy/mirror_stamp.lua").read_text()
    model = "".join(deploy_path(f"triton/{name}.py").read_text() for name in ("prediction_log", "sampling"))
    named = re.compile(r'"(x-headrace-[\w-]+)"')
    assert set(named.findall(stamp)) >= set(HEADERS)
    assert named.findall(again) == [mirrors.SHADOW_VERSION_HEADER]
    assert set(named.findall(model)) == set(HEADERS[1:])
    assert set(FORWARDED_HEADERS.split("|")) == {"traceparent", *HEADERS[1:]}
    clusters = {name + mirrors.MIRROR_SUFFIX for name in ("triton-grpc", "triton-http")}
    assert set(re.findall(r'"(triton-[\w-]+)"', stamp)) == clusters
