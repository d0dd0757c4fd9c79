"""Channel arguments that servers and clients share."""

from __future__ import annotations

from typing import Final

# gRPC's own limit of 4 MiB is below one batch of images or one wide tensor.
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
# Room for an error's details, of which headrace.rpc.errors uses a part.
MAX_METADATA_BYTES: Final = 32 * 1024

KEEPALIVE_MILLISECONDS: Final = 20_000
KEEPALIVE_TIMEOUT_MILLISECONDS: Final = 10_000


def pings_every(milliseconds: int) -> tuple[tuple[str, int], ...]:
    """Arguments of a server whose clients ping so often, also where nothing else is to send.

    Without them a server sends a client away that pings oftener than each five minutes.
    """
    return (("grpc.http2.min_ping_interval_without_data_ms", milliseconds // 2),)


COMMON: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MILLISECONDS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MILLISECONDS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
