"""What a person can choose about a stack."""

from __future__ import annotations

import ipaddress
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from headrace.errors import FieldViolation, InvalidArgument

EMBEDDED = "embedded"
KAFKA = "kafka"

_ADDRESS = re.compile(r"^[A-Za-z0-9._-]+:\d{1,5}$")
# Without TLS: neither Envoy nor Triton is set up to send spans with it.
_ENDPOINT = re.compile(r"^http://[A-Za-z0-9._-]+:\d{1,5}/?$")
_STORE_SCHEMES = ("file", "s3")


class StackOptions(BaseModel):
    """Which parts a stack has, and where its data is; made by `choose`, which checks them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Absolute, so that it means the same in every process.
    data: Path
    # embedded, kafka, or HOST:PORT[,HOST:PORT...] of a cluster that runs.
    broker: str = EMBEDDED
    # embedded, or a DSN.
    postgres: str = EMBEDDED
    # A URI; empty: a folder in the data folder.
    store: str = ""
    # The address that those parts bind to which others may use: broker, services' gRPC, Envoy.
    host: str = "127.0.0.1"
    # http://host:port of a collector (OTLP over gRPC); empty: the stack keeps its own traces.
    otlp_endpoint: str = ""

    @property
    def reachable_host(self) -> str:
        """The address that clients use: the one bound to, or this machine's own where that is all of them."""
        return _own_address() if ipaddress.ip_address(self.host).is_unspecified else self.host

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the stack."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def store_uri(self) -> str:
        """Where datasets, checkpoints and models are."""
        return self.store or (self.data / "store").as_uri()


def choose(
    data: Path,
    *,
    broker: str = EMBEDDED,
    postgres: str = EMBEDDED,
    store: str = "",
    host: str = "127.0.0.1",
    otlp_endpoint: str = "",
) -> StackOptions:
    """Check what a person asks for. Raises InvalidArgument/INVALID_STACK_OPTION, naming what is allowed."""
    if broker not in (EMBEDDED, KAFKA) and not all(map(_ADDRESS.match, broker.split(","))):
        raise _invalid("broker", f"{broker!r} is neither embedded, nor kafka, nor HOST:PORT")
    if postgres != EMBEDDED and urlsplit(postgres).scheme not in ("postgres", "postgresql"):
        raise _invalid(
            "postgres", f"{postgres!r} is neither embedded nor postgresql://USER@HOST:PORT/DATABASE"
        )
    scheme = urlsplit(store).scheme
    if scheme and scheme not in _STORE_SCHEMES:
        raise _invalid("store", f"{store!r} is neither a folder nor s3://BUCKET/PREFIX")
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        raise _invalid("host", f"{host!r} is no IPv4 address, such as 127.0.0.1 or 0.0.0.0") from None
    if otlp_endpoint and not _ENDPOINT.match(otlp_endpoint):
        raise _invalid(
            "otlp_endpoint",
            f"{otlp_endpoint!r} is not like http://HOST:4317; spans are sent without TLS only",
        )
    return StackOptions(
        data=data.absolute(),
        broker=broker,
        postgres=postgres,
        store=Path(store).absolute().as_uri() if store and not scheme else store,
        host=host,
        otlp_endpoint=otlp_endpoint,
    )


def _invalid(option: str, what: str) -> InvalidArgument:
    return InvalidArgument("INVALID_STACK_OPTION", what, fields=[FieldViolation(option, what)])


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Sends nothing: asks which address a packet to elsewhere (RFC 5737) would leave from.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
