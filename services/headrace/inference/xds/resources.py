"""Envoy's configuration, made from the routing table: clusters, one listener, and routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2, scoped_route_pb2
from envoy.config.trace.v3 import opentelemetry_pb2 as _tracing  # noqa: F401 - registers its messages
from envoy.extensions.compression.gzip.decompressor.v3 import gzip_pb2 as _gzip  # noqa: F401
from envoy.extensions.filters.http.decompressor.v3 import decompressor_pb2 as _decompressor  # noqa: F401
from envoy.extensions.filters.http.local_ratelimit.v3 import local_rate_limit_pb2 as _rate  # noqa: F401
from envoy.extensions.filters.http.lua.v3 import lua_pb2 as _lua  # noqa: F401
from envoy.extensions.filters.http.router.v3 import router_pb2 as _router  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as _manager,  # noqa: F401
)
from envoy.extensions.request_id.uuid.v3 import uuid_pb2 as _request_id  # noqa: F401
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2 as _hosts  # noqa: F401
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2 as _http  # noqa: F401
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from headrace.inference.use_cases.ports import Route
from headrace.inference.xds.clusters import clusters
from headrace.inference.xds.documents import Document
from headrace.inference.xds.listener import LISTENER_NAME, listener
from headrace.inference.xds.routes import SERVER_ROUTES, scopes, server_routes, shard_routes
from headrace.inference.xds.wiring import Wiring

CLUSTER: Final = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
LISTENER: Final = "type.googleapis.com/envoy.config.listener.v3.Listener"
SCOPES: Final = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration"
ROUTES: Final = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"

# Make before break: clusters exist before routes name them.
ORDER: Final = (CLUSTER, LISTENER, SCOPES, ROUTES)


def fixed_resources(wiring: Wiring) -> dict[str, dict[str, AnyMessage]]:
    """What does not change with deployments, by type and name."""
    return {
        CLUSTER: {entry["name"]: _packed(entry, cluster_pb2.Cluster()) for entry in clusters(wiring)},
        LISTENER: {LISTENER_NAME: _packed(listener(wiring), listener_pb2.Listener())},
        SCOPES: {
            entry["name"]: _packed(entry, scoped_route_pb2.ScopedRouteConfiguration()) for entry in scopes()
        },
        ROUTES: {SERVER_ROUTES: _packed(server_routes(), route_pb2.RouteConfiguration())},
    }


def shard_resource(shard: int, routes: Mapping[str, Route], servers: int) -> AnyMessage:
    """The route configuration of a shard with these deployments, which are on some of so many servers."""
    return _packed(shard_routes(shard, routes, servers), route_pb2.RouteConfiguration())


def _packed(document: Document, message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(json_format.ParseDict(document, message), deterministic=True)
    return packed
