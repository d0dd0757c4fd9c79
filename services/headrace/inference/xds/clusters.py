"""Where Envoy sends requests: Triton's servers, and how it keeps away from those that do not work."""

from __future__ import annotations

from typing import Final

from headrace.inference.domain.scaling import Scale
from headrace.inference.xds.documents import EXTENSION, Document, duration, socket
from headrace.inference.xds.mirrors import mirror_cluster
from headrace.inference.xds.wiring import TritonAddress, Wiring

TRITON_GRPC: Final = "triton-grpc"
TRITON_HTTP: Final = "triton-http"
TRACES: Final = "traces"
# Where the stamp says which servers have a request's model, and Envoy looks.
BALANCER: Final = "envoy.lb"
GROUP: Final = "group"
_SUBSETS: Final[Document] = {
    "lb_subset_config": {
        # What is asked of no model may be asked anywhere.
        "fallback_policy": "ANY_ENDPOINT",
        "subset_selectors": [{"keys": [GROUP], "fallback_policy": "NO_FALLBACK"}],
        "list_as_any": True,
    }
}
# The inference service, which answers streams, and the stamp, beside discovery: deploy/envoy/bootstrap.yaml.
STREAMS: Final = "streams"

# The default of 1,024 would refuse requests that Triton's own queue takes.
MAX_REQUESTS: Final = 16_384
# Of the requests in flight, so many per cent may be second attempts: enough for those of one of two servers
# that died, and no more than that where both are down.
RETRY_BUDGET_PERCENT: Final = 50.0
# So many may be in any case. A server that came back without its models refuses at once, so that it has the
# fewest requests and gets most of them first: all that wait for the others may be second attempts.
MIN_RETRIES: Final = 1_024
# A server that hangs answers no pings: what it had begun is asked of another after this long, and a model may
# take as long as it wants. Triton is started to take so many pings.
PING_SECONDS: Final = 2.0
PONG_SECONDS: Final = 10.0
_PINGED: Final[Document] = {
    "connection_keepalive": {"interval": duration(PING_SECONDS), "timeout": duration(PONG_SECONDS)}
}


def clusters(wiring: Wiring) -> list[Document]:
    """Every cluster."""
    found = [
        _triton(TRITON_GRPC, wiring, http2=_PINGED),
        _triton(TRITON_HTTP, wiring, http2=None),
    ]
    found += [mirror_cluster(cluster) for cluster in found]
    if wiring.traces:
        found.append(_cluster(TRACES, [{"endpoint": {"address": socket(wiring.traces)}}], http2={}))
    return found


def _triton(name: str, wiring: Wiring, *, http2: Document | None) -> Document:
    servers = wiring.triton
    endpoints = [_endpoint(server, http2=http2 is not None) for server in servers]
    if len(servers) > 1:
        for number, endpoint in enumerate(endpoints):
            endpoint["metadata"] = {"filter_metadata": {BALANCER: {GROUP: _groups(number, len(servers))}}}
    return {
        **_cluster(name, endpoints, http2=http2),
        **(_SUBSETS if len(servers) > 1 else {}),
        "lb_policy": "LEAST_REQUEST",
        # As the listener's: Envoy's own limit is 1 MiB, and a larger request would stop and go.
        # Copies of requests are read whole there before they are stamped.
        "per_connection_buffer_limit_bytes": wiring.max_request_bytes,
        # Where none is well, all are tried: the checks may be what is wrong.
        "common_lb_config": {"healthy_panic_threshold": {"value": 1}},
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "1s",
                # The default waits a minute between checks of what has had no traffic yet.
                "no_traffic_interval": "1s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "http_health_check": {"path": "/v2/health/ready"},
            }
        ],
        # Connections that fail put a server out sooner than checks do. Its answers do not: a model that fails
        # must not take a server from the others.
        "outlier_detection": {
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 3,
            "enforcing_consecutive_local_origin_failure": 100,
            "enforcing_local_origin_success_rate": 0,
            "enforcing_consecutive_5xx": 0,
            "enforcing_consecutive_gateway_failure": 0,
            "enforcing_success_rate": 0,
            "interval": "1s",
            "base_ejection_time": "2s",
            "max_ejection_time": "10s",
            "max_ejection_percent": 50,
        },
    }


def group_of(scale: Scale, servers: int) -> str:
    """The name of those servers that a deployment is on; empty for all of them."""
    if scale.replicas >= servers:
        return ""
    return f"{scale.first % servers}+{scale.replicas}"


def _groups(number: int, servers: int) -> list[str]:
    """Every group that a server is in."""
    scales = (Scale(replicas, first) for replicas in range(1, servers) for first in range(servers))
    return [group_of(scale, servers) for scale in scales if number in scale.servers(servers)]


def _endpoint(server: TritonAddress, *, http2: bool) -> Document:
    if not http2:
        return {"endpoint": {"address": socket(server.http)}}
    # Triton says over HTTP whether it is ready, for both.
    check = {"port_value": int(server.http.rpartition(":")[2])}
    return {"endpoint": {"address": socket(server.grpc), "health_check_config": check}}


def _cluster(name: str, endpoints: list[Document], *, http2: Document | None) -> Document:
    cluster: Document = {
        "name": name,
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_requests": MAX_REQUESTS,
                    "max_pending_requests": MAX_REQUESTS,
                    "retry_budget": {
                        "budget_percent": {"value": RETRY_BUDGET_PERCENT},
                        "min_retry_concurrency": MIN_RETRIES,
                    },
                }
            ]
        },
    }
    if http2 is not None:
        cluster["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{EXTENSION}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": http2},
            }
        }
    return cluster
