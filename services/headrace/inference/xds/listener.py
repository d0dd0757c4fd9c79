"""The listener: how Envoy takes requests, before it is known where they go."""

from __future__ import annotations

from typing import Final

from envoy.extensions.http.early_header_mutation.header_mutation.v3 import (
    header_mutation_pb2 as _mutation,  # noqa: F401 - registers its messages
)

from headrace.inference.xds.clusters import TRACES
from headrace.inference.xds.documents import EXTENSION, Document, duration, socket
from headrace.inference.xds.mirrors import MIRROR_CLUSTER_HEADER, MIRROR_ID_HEADER, SHADOW_VERSION_HEADER
from headrace.inference.xds.rate_limits import rate_limits
from headrace.inference.xds.routes import COLD_HEADER, LUA, SHARD_HEADER, scoping
from headrace.inference.xds.wiring import Patience, Wiring
from headrace.runtime.resources import deploy_path

LISTENER_NAME: Final = "inference"

# The stamp's own headers are taken away from whatever callers send, before anything reads them.
_STAMPS_OWN: Final = [
    {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": f"{EXTENSION}.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": [
                {"remove": header}
                for header in (
                    SHARD_HEADER,
                    COLD_HEADER,
                    MIRROR_CLUSTER_HEADER,
                    SHADOW_VERSION_HEADER,
                    MIRROR_ID_HEADER,
                )
            ],
        },
    }
]

# What callers are told; who asks for requests over Kafka tells the two apart by it.
TOO_LARGE: Final = "the request is larger than"
TOO_MANY: Final = "more requests a second than one client, or this model, may have; try again later"

# What HTTP/2 allows of a window.
MIN_WINDOW, MAX_WINDOW = 2**16 - 1, 2**31 - 1


def listener(wiring: Wiring) -> Document:
    """The listener of the Open Inference Protocol, of gRPC and REST."""
    manager: Document = {
        "@type": f"{EXTENSION}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "inference",
        "codec_type": "AUTO",
        "generate_request_id": False,
        # Without request ids, whether a request is traced must not be read from them.
        "request_id_extension": {
            "typed_config": {
                "@type": f"{EXTENSION}.request_id.uuid.v3.UuidRequestIdConfig",
                "pack_trace_reason": False,
                "use_request_id_for_trace_sampling": False,
            }
        },
        **_patience(wiring.patience),
        "http2_protocol_options": {
            # What Envoy buffers of an HTTP/2 request is bounded by this window, and by nothing else.
            "initial_stream_window_size": min(max(wiring.max_request_bytes, MIN_WINDOW), MAX_WINDOW),
            # Whoever vanished without a word takes its requests along.
            "connection_keepalive": {
                "interval": duration(wiring.patience.ping),
                "timeout": duration(wiring.patience.ping),
            },
        },
        "scoped_routes": scoping(),
        "local_reply_config": {"mappers": _own_answers(wiring.max_request_bytes)},
        # What the routes below allow must be what Triton sees.
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "early_header_mutation_extensions": _STAMPS_OWN,
        "http_filters": [
            _unpacking(),
            {
                "name": LUA,
                "typed_config": {
                    "@type": f"{EXTENSION}.filters.http.lua.v3.Lua",
                    "default_source_code": {"inline_string": _stamp(wiring)},
                },
            },
            *rate_limits(wiring.client_rate, wiring.model_rate),
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": f"{EXTENSION}.filters.http.router.v3.Router",
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
        "address": socket(wiring.listen),
        "per_connection_buffer_limit_bytes": wiring.max_request_bytes,
        "socket_options": _probes(wiring.patience),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _stamp(wiring: Wiring) -> str:
    """The version stamp, told what it has to know of the limits."""
    script = deploy_path("envoy/version_stamp.lua").read_text()
    return (
        f"local MAX_REQUEST_BYTES = {wiring.max_request_bytes}\n"
        f"local MODELS_ARE_LIMITED = {'true' if wiring.model_rate else 'false'}\n{script}"
    )


def _unpacking() -> Document:
    """Unpacks gzip before anything is counted: a few bytes may be many, and the limits are for those."""
    never = {"default_value": False, "runtime_key": "unused"}
    return {
        "name": "envoy.filters.http.decompressor",
        "typed_config": {
            "@type": f"{EXTENSION}.filters.http.decompressor.v3.Decompressor",
            "decompressor_library": {
                "name": "gzip",
                "typed_config": {"@type": f"{EXTENSION}.compression.gzip.decompressor.v3.Gzip"},
            },
            # Triton's answers are not Envoy's to pack.
            "request_direction_config": {"advertise_accept_encoding": False},
            "response_direction_config": {"common_config": {"enabled": never}},
        },
    }


def _patience(patience: Patience) -> Document:
    """How long a client may take, and a model as long as it wants."""
    return {
        "request_headers_timeout": duration(patience.headers),
        # It ends with a stream's first answer, which the inference service sends at once.
        "request_timeout": duration(patience.request),
        # The default would end a call whose model takes five minutes, and a stream that is silent so long.
        "stream_idle_timeout": "0s",
        "stream_flush_timeout": duration(patience.reading),
        "common_http_protocol_options": {"idle_timeout": duration(patience.idle)},
    }


# Linux's numbers: SOL_SOCKET and IPPROTO_TCP, and the options of TCP's keep-alive.
_SOCKET, _TCP = 1, 6
_KEEP_ALIVE, _IDLE, _INTERVAL, _COUNT, _USER_TIMEOUT = 9, 4, 5, 6, 18
_PROBES: Final = 3


def _probes(patience: Patience) -> list[Document]:
    """HTTP/1 has no pings: the kernel asks whether the other side is there, and whether it reads."""
    every = max(1, round(patience.ping))
    # Of what waits for a client that takes nothing; Envoy's own timer runs for answers that it has whole.
    unread = round(patience.reading * 1000)
    tcp = {_IDLE: every, _INTERVAL: every, _COUNT: _PROBES, _USER_TIMEOUT: unread}
    return [
        {"level": _SOCKET, "name": _KEEP_ALIVE, "int_value": 1},
        *({"level": _TCP, "name": name, "int_value": value} for name, value in tcp.items()),
    ]


def _own_answers(limit: int) -> list[Document]:
    """Envoy's own answers, in gRPC's words to who asked in gRPC, else in those of the protocol's REST."""
    return [
        *_told(408, _DEADLINE_EXCEEDED, "the request did not arrive in time; send it faster"),
        *_told(413, _RESOURCE_EXHAUSTED, f"{TOO_LARGE} {limit} bytes"),
        *_told(429, _RESOURCE_EXHAUSTED, TOO_MANY),
        # As it is: in gRPC the body is the status's message.
        {"filter": {"and_filter": {"filters": [_status("GE", 500), _ASKED_IN_GRPC]}}},
        {
            "filter": _status("GE", 500),
            "body_format_override": {"json_format": {"error": "%LOCAL_REPLY_BODY%"}},
        },
    ]


_ASKED_IN_GRPC: Final = {
    "header_filter": {"header": {"name": "content-type", "string_match": {"prefix": "application/grpc"}}}
}


# gRPC's numbers.
_DEADLINE_EXCEEDED, _RESOURCE_EXHAUSTED = 4, 8


def _told(status: int, grpc_status: int, message: str) -> list[Document]:
    """An answer with this status of HTTP, and in gRPC with that one of its own."""
    told = _status("EQ", status)
    return [
        {
            "filter": {"and_filter": {"filters": [told, _ASKED_IN_GRPC]}},
            # The status's message.
            "body": {"inline_string": message},
            "headers_to_add": [
                {
                    "header": {"key": "grpc-status", "value": str(grpc_status)},
                    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                }
            ],
        },
        {"filter": told, "body_format_override": {"json_format": {"error": message}}},
    ]


def _status(comparison: str, status: int) -> Document:
    value = {"default_value": status, "runtime_key": "unused"}
    return {"status_code_filter": {"comparison": {"op": comparison, "value": value}}}
