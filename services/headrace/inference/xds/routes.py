"""Where requests go, and what is refused: the protocol's methods and paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from headrace.inference.use_cases.ports import Route
from headrace.inference.xds.clusters import TRITON_GRPC, TRITON_HTTP
from headrace.inference.xds.documents import EXTENSION, Document

ROUTES_NAME: Final = "open-inference-protocol"

LUA: Final = "envoy.filters.http.lua"
SERVICE: Final = "/inference.GRPCInferenceService/"

# What clients may ask, of gRPC and of REST; loading, unloading, shared memory and settings are the control
# plane's.
PUBLIC_METHODS: Final = (
    "ModelInfer",
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelConfig",
    "RepositoryIndex",
)

MAX_RETRIES: Final = 2

PUBLIC_SERVER_PATHS: Final = ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/repository/index")
PUBLIC_PATHS: Final = "/v2/models/[^/]+(/versions/[^/]+)?(/infer|/ready|/config)?"


def route_configuration(routes: Mapping[str, Route]) -> Document:
    """The routes, with what the version stamp has to know of each deployment."""
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
        # The caller's deadline is the only one; a request without one may take as long as its model does.
        "timeout": "0s",
        "max_stream_duration": {"grpc_timeout_header_max": "0s"},
        "retry_policy": {
            # UNAVAILABLE, in REST 503, is what Triton answers before it begins. A request whose server died may
            # have been computed: to do so again changes nothing, but a line in the prediction log.
            "retry_on": "connect-failure,refused-stream,reset,unavailable,retriable-status-codes",
            "retriable_status_codes": [503],
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
            # The balancer likes a server that answers nothing, for it has the fewest requests: of two, three of four
            # times. So often it is asked for another one.
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
