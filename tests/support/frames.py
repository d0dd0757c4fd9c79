"""A gRPC call whose message is sent in frames of one's choice, which no gRPC library lets one choose."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from urllib.parse import unquote

import grpc
import h2.config
import h2.connection
import h2.events

DEADLINE_SECONDS = 60
_CODES = {code.value[0]: code for code in grpc.StatusCode}


async def call_in_frames(
    address: str, method: str, frames: Iterable[bytes], metadata: dict[str, str]
) -> tuple[grpc.StatusCode, str, bytes]:
    """Send these frames, one after the other; answer the status, its words, and the answer's message.

    Without any the headers end the request.
    """
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="ascii"))
    connection.initiate_connection()
    frames = list(frames)
    connection.send_headers(
        1,
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", address),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *metadata.items(),
        ],
        end_stream=not frames,
    )
    writer.write(connection.data_to_send())
    headers: dict[str, str] = {}
    received = bytearray()
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            for frame in frames:
                connection.send_data(1, frame)
                writer.write(connection.data_to_send())
                await writer.drain()
            if frames:
                connection.end_stream(1)
            writer.write(connection.data_to_send())
            while data := await reader.read(1 << 16):
                for event in connection.receive_data(data):
                    match event:
                        case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                            headers |= {str(name): str(value) for name, value in event.headers}
                        case h2.events.DataReceived():
                            received += event.data
                        case h2.events.StreamEnded():
                            code = _CODES[int(headers["grpc-status"])]
                            return code, unquote(headers.get("grpc-message", "")), bytes(received[5:])
                        case h2.events.StreamReset():
                            raise ConnectionError(f"the stream was reset: {event.error_code}")
                writer.write(connection.data_to_send())
        raise ConnectionError("the connection ended without an answer")
    finally:
        writer.close()
