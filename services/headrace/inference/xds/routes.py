"""Where requests go, and what is refused: the protocol's methods and paths.

The routes to models are kept in shards, so that a change of one deployment's weights sends Envoy its
neighbours' and not everybody's (docs/adr/0034). The version stamp finds a request's model and names its shard
in a header.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from headrace.inference.domain.scaling import Scale
from headrace.inference.use_cases.ports import Route
from headrace.inference.xds.clusters import STREAMS, TRITON_GRPC, TRITON_HTTP, group_of
from headrace.inference.xds.documents import EXTENSION, Document
from headrace.inference.xds.mirrors import MIRROR_CLUSTER_HEADER, MIRROR_POLICIES, trial_document

SHARDS: Final = 64
SERVER_ROUTES: Final = "server"
SHARD_HEADER: Final = "x-headrace-shard"
# By it the stamp says that a model is loaded when it is asked: whether it is ready, no server has to say.
COLD_HEADER: Final = "x-headrace-cold"
# Whose a stream is: what serves streams asks in that client's name.
CLIENT_HEADER: Final = "x-headrace-client"

LUA: Final = "envoy.filters.http.lua"
SERVICE: Final = "/inference.GRPCInferenceService/"

# What clients may ask beside inference, of gRPC and of REST; loading, unloading, shared memory and settings
# are the control plane's.
MODEL_METHODS: Final = ("ModelReady", "ModelMetadata", "ModelConfig")
PUBLIC_METHODS: Final = (
    "ServerLive",
    "ServerReady",
    "ServerMetadata",
    *MODEL_METHODS,
)

MAX_RETRIES: Final = 2
# The status's number, as it stands in the header grpc-status.
_NOT_FOUND: Final = "5"

# The caller's deadline is the only one; a request without one may take as long as its model does.
_DEADLINE: Final = {"timeout": "0s", "max_stream_duration": {"grpc_timeout_header_max": "0s"}}

# What is listed for REST the stamp answers.
PUBLIC_SERVER_PATHS: Final = ("/v2", "/v2/health/live", "/v2/health/ready")
PUBLIC_PATHS: Final = "/v2/models/[^/]+(/versions/[^/]+)?(/infer|/ready|/config)?"


def shard_of(deployment: str) -> int:
    """The shard that has a deployment's routes; deploy/envoy/version_stamp.lua counts in the same way."""
    number = 0
    for byte in deployment.encode():
        number = (number * 31 + byte) % 65_521
    return number % SHARDS


def shard_name(shard: int) -> str:
    """A shard's route configuration, and the key of its scope."""
    return f"models-{shard}"


def scoping() -> Document:
    """That a request goes by the route configuration which the version stamp names in a header."""
    ads = {"ads": {}, "resource_api_version": "V3"}
    return {
        "name": "open-inference-protocol",
        "scope_key_builder": {
            "fragments": [
                {"header_value_extractor": {"name": SHARD_HEADER, "element_separator": ";", "index": 0}}
            ]
        },
        "rds_config_source": ads,
        "scoped_rds": {"scoped_rds_config_source": ads},
    }


def scopes() -> list[Document]:
    """The names that the header may have."""
    return [
        {"name": name, "route_configuration_name": name, "key": {"fragments": [{"string_key": name}]}}
        for name in (SERVER_ROUTES, *map(shard_name, range(SHARDS)))
    ]


def server_routes() -> Document:
    """The routes of what is asked of no model, or of no version of one."""
    return _configuration(
        SERVER_ROUTES,
        [
            {
                "match": {
                    "path": SERVICE + "ModelReady",
                    "headers": [{"name": COLD_HEADER, "present_match": True}],
                },
                "route": {"cluster": STREAMS, **_DEADLINE},
            },
            *({"match": {"path": SERVICE + method}, "route": _to(TRITON_GRPC)} for method in PUBLIC_METHODS),
            _stream(),
            {"match": {"path": SERVICE + "RepositoryIndex"}, "route": {"cluster": STREAMS, **_DEADLINE}},
            # PERMISSION_DENIED in gRPC.
            _refused({"prefix": SERVICE}, 403, "for operators only"),
            *({"match": {"path": path}, "route": _to(TRITON_HTTP)} for path in PUBLIC_SERVER_PATHS),
            _refused({"prefix": "/v2/"}, 403, "for operators only", json=True),
            _refused({"prefix": "/"}, 404, "the Open Inference Protocol is served below /v2", json=True),
        ],
    )


def shard_routes(shard: int, routes: Mapping[str, Route], servers: int) -> Document:
    """The routes to some models' versions, with what the version stamp has to know of each."""
    known = {
        name: {
            "weights": {str(version): weight for version, weight in route.weights.items()},
            "signature": route.signature,
            **trial_document(route.trial),
            **_place(route.scale, servers),
        }
        for name, route in sorted(routes.items())
    }
    return _configuration(
        shard_name(shard),
        [
            *_mirrored_or_not({"path": SERVICE + "ModelInfer"}, TRITON_GRPC),
            *({"match": {"path": SERVICE + method}, "route": _to(TRITON_GRPC)} for method in MODEL_METHODS),
            *_mirrored_or_not({"safe_regex": {"regex": PUBLIC_PATHS}}, TRITON_HTTP),
            _refused({"prefix": "/"}, 403, "for operators only", json=True),
        ],
        {"metadata": {"filter_metadata": {LUA: known}}},
    )


def _place(scale: Scale, servers: int) -> Document:
    """Of a deployment that not every server has."""
    if scale.replicas == 0:
        return {"cold": True}
    group = group_of(scale, servers)
    return {"group": group} if group else {}


def _configuration(name: str, routes: list[Document], more: Mapping[str, Any] | None = None) -> Document:
    return {
        "name": name,
        "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes, **(more or {})}],
    }


def _stream() -> Document:
    client = {"key": CLIENT_HEADER, "value": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}
    return {
        "match": {"path": SERVICE + "ModelStreamInfer"},
        # Each of its requests comes back as one of its own, and is tried again as those are.
        "route": {"cluster": STREAMS, **_DEADLINE},
        "request_headers_to_add": [{"header": client, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
    }


def _mirrored_or_not(match: Document, cluster: str) -> list[Document]:
    """Two routes: where requests may be copied, Envoy keeps headers and body of each, be it copied or not."""
    mirrored = {**match, "headers": [{"name": MIRROR_CLUSTER_HEADER, "present_match": True}]}
    return [
        {"match": mirrored, "route": {**_to(cluster), "request_mirror_policies": MIRROR_POLICIES}},
        {"match": match, "route": _to(cluster)},
    ]


def _to(cluster: str) -> Document:
    return {
        "cluster": cluster,
        **_DEADLINE,
        "retry_policy": {
            # What Triton answers before it begins: UNAVAILABLE, in REST 503, of a version that is not ready,
            # and NOT_FOUND, 404, of a model that it has not heard of since it started. And what it gives up
            # while it stops, CANCELLED. A request whose server died may have been computed: to do so again
            # changes nothing, but a line in the prediction log.
            "retry_on": "connect-failure,refused-stream,reset,cancelled,unavailable,retriable-headers,"
            "retriable-status-codes",
            "retriable_headers": [{"name": "grpc-status", "string_match": {"exact": _NOT_FOUND}}],
            "retriable_status_codes": [404, 503],
            # A request that kills its server kills no more than these.
            "num_retries": MAX_RETRIES,
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {
                        "@type": f"{EXTENSION}.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                    },
                }
            ],
            # The balancer likes a server that answers nothing, for it has the fewest requests: of two, three
            # times of four. So often it is asked for another one.
            "host_selection_retry_max_attempts": 32,
        },
    }


def _refused(match: Document, status: int, message: str, *, json: bool = False) -> Document:
    """An answer of Envoy's own; in gRPC the body is the status's message."""
    refused: Document = {
        "match": match,
        "direct_response": {
            "status": status,
            "body": {"inline_string": f'{{"error": "{message}"}}' if json else message},
        },
    }
    if json:
        header = {"key": "content-type", "value": "application/json"}
        refused["response_headers_to_add"] = [
            {"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        ]
    return refused
