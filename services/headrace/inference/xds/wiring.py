"""What of Envoy's configuration does not change while the service runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TritonAddress:
    """Where one Triton server is, host:port of each of its protocols."""

    grpc: str
    http: str


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client is waited for, in seconds (docs/adr/0044).

    `headers`: from a request's first byte to the end of its headers. `request`: to its end. `reading`: while
    it reads nothing of an answer that waits for it. `ping`: between pings on its connection, and for the
    answer to one. `idle`: on a connection without requests.
    """

    headers: float = 10.0
    request: float = 60.0
    reading: float = 60.0
    ping: float = 20.0
    idle: float = 300.0


@dataclass(frozen=True, slots=True)
class Wiring:
    """host:port of everything, and limits.

    `traces` is empty where nothing takes spans. A request is read whole before it is stamped, and one larger
    than `max_request_bytes` is answered RESOURCE_EXHAUSTED, in REST 413. `client_rate` and `model_rate` are
    requests a second that one Envoy takes from one client address and for one model; 0 for any number.
    """

    listen: str
    triton: tuple[TritonAddress, ...]
    traces: str = ""
    max_request_bytes: int = 64 << 20
    trace_share: float = 0.01
    client_rate: int = 0
    model_rate: int = 0
    patience: Patience = Patience()
