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
from headrace.runtime.resources import deploy_path

CLUSTER: Final = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
LISTENER: Final = "type.googleapis.com/envoy.config.listener.v3.Listener"
ROUTES: Final = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"

LISTENER_NAME = "inference"
ROUTES_NAME = "open-inference-protocol"
TRITON_GRPC = "triton-grpc"
TRITON_HTTP = "triton-http"
TRACES = "traces"

# A request is read whole before it is stamped; a larger one is answered RESOURCE_EXHAUSTED.
MAX_REQUEST_BYTES = 64 << 20
LUA = "envoy.filters.http.lua"
SERVICE = "/inference.GRPCInferenceService/"

# What clients may ask; loading, unloading, shared memory and settings are the control plane's.
PUBLIC_METHODS = (
    "ModelInfer",
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelConfig",
)

_EXTENSION = "type.googleapis.com/envoy.extensions"
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Addresses:
    """host:port of everything; `traces` is empty where nothing takes spans."""

    listen: str
    triton_grpc: str
    triton_http: str
    traces: str = ""


def resources(addresses: Addresses, routes: Mapping[str, Route]) -> dict[str, dict[str, AnyMessage]]:
    """Every resource by type and name."""
    clusters = [
        _cluster(TRITON_GRPC, addresses.triton_grpc, http2=True),
        _cluster(TRITON_HTTP, addresses.triton_http, http2=False),
    ]
    if addresses.traces:
        clusters.append(_cluster(TRACES, addresses.traces, http2=True))
    return {
        CLUSTER: {entry["name"]: _packed(entry, cluster_pb2.Cluster()) for entry in clusters},
        LISTENER: {LISTENER_NAME: _packed(_listener(addresses), listener_pb2.Listener())},
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


def _listener(addresses: Addresses) -> Document:
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
        "rds": {"route_config_name": ROUTES_NAME, "config_source": {"ads": {}, "resource_api_version": "V3"}},
        "local_reply_config": {"mappers": [_too_large()]},
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
    if addresses.traces:
        manager["tracing"] = {
            "provider": {
                "name": "envoy.tracers.opentelemetry",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                    "grpc_service": {"envoy_grpc": {"cluster_name": TRACES}, "timeout": "1s"},
                    "service_name": "envoy",
                },
            },
        }
    return {
        "name": LISTENER_NAME,
        "address": _socket(addresses.listen),
        "per_connection_buffer_limit_bytes": MAX_REQUEST_BYTES,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _too_large() -> Document:
    return {
        "filter": {
            "status_code_filter": {
                "comparison": {"op": "EQ", "value": {"default_value": 413, "runtime_key": "unused"}}
            }
        },
        "headers_to_add": [
            {
                "header": {"key": name, "value": value},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
            for name, value in (
                ("grpc-status", "8"),
                ("grpc-message", f"the request is larger than {MAX_REQUEST_BYTES >> 20} MiB"),
            )
        ],
    }


def _routes(routes: Mapping[str, Route]) -> Document:
    metadata = {
        "filter_metadata": {
            LUA: {
                name: {
                    "weights": {str(version): weight for version, weight in route.weights.items()},
                    "signature": route.signature,
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
                    _refused({"prefix": SERVICE}, 403, "operators only: use Headrace's own API"),
                    {
                        "match": {"prefix": "/v2/models/"},
                        "route": _to(TRITON_HTTP),
                        "metadata": metadata,
                    },
                    {"match": {"prefix": "/v2/health/"}, "route": _to(TRITON_HTTP)},
                    {"match": {"path": "/v2"}, "route": _to(TRITON_HTTP)},
                    _refused({"prefix": "/v2/"}, 403, "operators only: use Headrace's own API"),
                    _refused({"prefix": "/"}, 404, "the Open Inference Protocol answers below /v2"),
                ],
            }
        ],
    }


def _to(cluster: str) -> Document:
    return {
        "cluster": cluster,
        # The caller's deadline is the only one; a request without one may take as long as its model does.
        "timeout": "0s",
        "max_stream_duration": {"grpc_timeout_header_max": "0s"},
        # Only what Triton has certainly not begun.
        "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 3},
    }


def _refused(match: Document, status: int, message: str) -> Document:
    return {
        "match": match,
        "direct_response": {"status": status, "body": {"inline_string": f'{{"error": "{message}"}}'}},
    }
