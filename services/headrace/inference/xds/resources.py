"""Envoy's configuration, made from the routing table: clusters, one listener, one route configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.config.trace.v3 import opentelemetry_pb2 as _tracing  # noqa: F401 - registers its messages
from envoy.extensions.filters.http.lua.v3 import lua_pb2 as _lua  # noqa: F401
from envoy.extensions.filters.http.router.v3 import router_pb2 as _router  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as _manager,  # noqa: F401
)
from envoy.extensions.request_id.uuid.v3 import uuid_pb2 as _request_id  # noqa: F401
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2 as _http  # noqa: F401
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from headrace.inference.use_cases.ports import Route
from headrace.inference.xds.mirrors import (
    CALLERS_MAY_NOT_SEND,
    MIRROR_POLICIES,
    mirror_cluster,
    trial_document,
)
from headrace.runtime.resources import deploy_path

CLUSTER: Final = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
LISTENER: Final = "type.googleapis.com/envoy.config.listener.v3.Listener"
ROUTES: Final = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"

LISTENER_NAME = "inference"
ROUTES_NAME = "open-inference-protocol"
TRITON_GRPC = "triton-grpc"
TRITON_HTTP = "triton-http"
TRACES = "traces"

# What HTTP/2 allows of a window.
MIN_WINDOW, MAX_WINDOW = 2**16 - 1, 2**31 - 1

LUA = "envoy.filters.http.lua"
SERVICE = "/inference.GRPCInferenceService/"

# What clients may ask, of gRPC and of REST; loading, unloading, shared memory and settings are the control
# plane's.
PUBLIC_METHODS = (
    "ModelInfer",
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelConfig",
)

PUBLIC_SERVER_PATHS = ("/v2", "/v2/health/live", "/v2/health/ready")
PUBLIC_PATHS = "/v2/models/[^/]+(/versions/[^/]+)?(/infer|/ready|/config)?"

_EXTENSION = "type.googleapis.com/envoy.extensions"
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wiring:
    """What of the configuration does not change: host:port of everything, and limits.

    `traces` is empty where nothing takes spans. A request is read whole before it is stamped, and one larger
    than `max_request_bytes` is answered RESOURCE_EXHAUSTED, in REST 413.
    """

    listen: str
    triton_grpc: str
    triton_http: str
    traces: str = ""
    max_request_bytes: int = 64 << 20
    trace_share: float = 0.01


def resources(wiring: Wiring, routes: Mapping[str, Route]) -> dict[str, dict[str, AnyMessage]]:
    """Every resource by type and name."""
    clusters = [
        _cluster(TRITON_GRPC, wiring.triton_grpc, http2=True),
        _cluster(TRITON_HTTP, wiring.triton_http, http2=False),
    ]
    clusters += [mirror_cluster(cluster, wiring.max_request_bytes) for cluster in clusters]
    if wiring.traces:
        clusters.append(_cluster(TRACES, wiring.traces, http2=True))
    return {
        CLUSTER: {entry["name"]: _packed(entry, cluster_pb2.Cluster()) for entry in clusters},
        LISTENER: {LISTENER_NAME: _packed(_listener(wiring), listener_pb2.Listener())},
        ROUTES: {ROUTES_NAME: _packed(_routes(routes), route_pb2.RouteConfiguration())},
    }


def _packed(document: Document, message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(json_format.ParseDict(document, message), deterministic=True)
    return packed


def _socket(address: str) -> Document:
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def _cluster(name: str, address: str, *, http2: bool) -> Document:
    cluster: Document = {
        "name": name,
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _socket(address)}}]}],
        },
        # The default of 1,024 would refuse requests that Triton's own queue takes.
        "circuit_breakers": {"thresholds": [{"max_requests": 16384, "max_pending_requests": 16384}]},
    }
    if http2:
        cluster["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_EXTENSION}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
    return cluster


def _listener(wiring: Wiring) -> Document:
    manager: Document = {
        "@type": f"{_EXTENSION}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "inference",
        "codec_type": "AUTO",
        "generate_request_id": False,
        # Without request ids, whether a request is traced must not be read from them.
        "request_id_extension": {
            "typed_config": {
                "@type": f"{_EXTENSION}.request_id.uuid.v3.UuidRequestIdConfig",
                "pack_trace_reason": False,
                "use_request_id_for_trace_sampling": False,
            }
        },
        # What Envoy buffers of an HTTP/2 request is bounded by this window, and by nothing else.
        "http2_protocol_options": {
            "initial_stream_window_size": min(max(wiring.max_request_bytes, MIN_WINDOW), MAX_WINDOW)
        },
        "rds": {"route_config_name": ROUTES_NAME, "config_source": {"ads": {}, "resource_api_version": "V3"}},
        "local_reply_config": {"mappers": _too_large(wiring.max_request_bytes)},
        # What the routes below allow must be what Triton sees.
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "early_header_mutation_extensions": CALLERS_MAY_NOT_SEND,
        "http_filters": [
            {
                "name": LUA,
                "typed_config": {
                    "@type": f"{_EXTENSION}.filters.http.lua.v3.Lua",
                    "default_source_code": {
                        "inline_string": deploy_path("envoy/version_stamp.lua").read_text()
                    },
                },
            },
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": f"{_EXTENSION}.filters.http.router.v3.Router",
                    "dynamic_stats": False,
                },
            },
        ],
    }
    if wiring.traces:
        manager["tracing"] = {
            "provider": {
                "name": "envoy.tracers.opentelemetry",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                    "grpc_service": {"envoy_grpc": {"cluster_name": TRACES}, "timeout": "1s"},
                    "service_name": "envoy",
                },
            },
            # Of requests that bring no context; one that does decides for itself.
            "random_sampling": {"value": 100 * wiring.trace_share},
        }
    return {
        "name": LISTENER_NAME,
        "address": _socket(wiring.listen),
        "per_connection_buffer_limit_bytes": wiring.max_request_bytes,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _too_large(limit: int) -> list[Document]:
    """Envoy's 413, in gRPC's words to who asked in gRPC, else in those of the protocol's REST."""
    message = f"the request is larger than {limit} bytes"
    too_large = {
        "status_code_filter": {
            "comparison": {"op": "EQ", "value": {"default_value": 413, "runtime_key": "unused"}}
        }
    }
    asked_in_grpc = {
        "header_filter": {"header": {"name": "content-type", "string_match": {"prefix": "application/grpc"}}}
    }
    return [
        {
            "filter": {"and_filter": {"filters": [too_large, asked_in_grpc]}},
            # The status's message.
            "body": {"inline_string": message},
            "headers_to_add": [
                {
                    "header": {"key": "grpc-status", "value": "8"},
                    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                }
            ],
        },
        {"filter": too_large, "body_format_override": {"json_format": {"error": message}}},
    ]


def _routes(routes: Mapping[str, Route]) -> Document:
    metadata = {
        "filter_metadata": {
            LUA: {
                name: {
                    "weights": {str(version): weight for version, weight in route.weights.items()},
                    "signature": route.signature,
                    **trial_document(route.trial),
                }
                for name, route in sorted(routes.items())
            }
        }
    }
    return {
        "name": ROUTES_NAME,
        "virtual_hosts": [
            {
                "name": "all",
                "domains": ["*"],
                "routes": [
                    *(
                        {
                            "match": {"path": SERVICE + method},
                            "route": _to(TRITON_GRPC),
                            **({"metadata": metadata} if method == "ModelInfer" else {}),
                        }
                        for method in PUBLIC_METHODS
                    ),
                    # 404 is UNIMPLEMENTED in gRPC, 403 PERMISSION_DENIED.
                    _refused(
                        {"path": SERVICE + "ModelStreamInfer"}, 404, "call ModelInfer: streams are not served"
                    ),
                    _refused({"prefix": SERVICE}, 403, "for operators only"),
                    {
                        "match": {"safe_regex": {"regex": PUBLIC_PATHS}},
                        "route": _to(TRITON_HTTP),
                        "metadata": metadata,
                    },
                    *({"match": {"path": path}, "route": _to(TRITON_HTTP)} for path in PUBLIC_SERVER_PATHS),
                    _refused({"prefix": "/v2/"}, 403, "for operators only", json=True),
                    _refused(
                        {"prefix": "/"}, 404, "the Open Inference Protocol is served below /v2", json=True
                    ),
                ],
            }
        ],
    }


def _to(cluster: str) -> Document:
    return {
        "cluster": cluster,
        "request_mirror_policies": MIRROR_POLICIES,
        # The caller's deadline is the only one; a request without one may take as long as its model does.
        "timeout": "0s",
        "max_stream_duration": {"grpc_timeout_header_max": "0s"},
        # Only what Triton has certainly not begun.
        "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 3},
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
