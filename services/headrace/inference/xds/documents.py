"""Parts that Envoy's configuration is written with."""

from __future__ import annotations

from typing import Any, Final

# A resource in Protobuf's JSON form.
Document = dict[str, Any]

EXTENSION: Final = "type.googleapis.com/envoy.extensions"


def duration(seconds: float) -> str:
    """So many seconds."""
    return f"{seconds:.3f}s"


def socket(address: str) -> Document:
    """An address at host:port."""
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}
