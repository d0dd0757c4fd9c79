"""`python -m headrace.embedded.trace_sink --grpc HOST:PORT --http HOST:PORT`.

The database that keeps the spans is the platform's own, `HEADRACE_POSTGRES_DSN`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import asyncpg
import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from headrace.embedded.trace_sink.decode import MalformedExport, SpanRow, parse_http, rows
from headrace.embedded.trace_sink.store import SpanStore
from headrace.runtime.settings import PlatformSettings, load

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 << 20


class GrpcReceiver(trace_service_pb2_grpc.TraceServiceServicer):
    """OTLP over gRPC."""

    def __init__(self, store: SpanStore) -> None:
        self._store = store

    async def Export(  # noqa: N802 - the protocol's name
        self,
        request: trace_service_pb2.ExportTraceServiceRequest,
        context: grpc.aio.ServicerContext[
            trace_service_pb2.ExportTraceServiceRequest, trace_service_pb2.ExportTraceServiceResponse
        ],
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        """Queue the request's spans."""
        self._store.put(rows(request))
        return trace_service_pb2.ExportTraceServiceResponse()


def http_server(
    host: str, port: int, store: SpanStore, loop: asyncio.AbstractEventLoop
) -> ThreadingHTTPServer:
    """OTLP over HTTP, on threads of its own; spans are handed to the loop's thread."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if length > MAX_BODY_BYTES:
                self._answer(413, b"the body is too large")
                return
            try:
                request = parse_http(self.rfile.read(length), self.headers.get("Content-Type", ""))
            except MalformedExport as error:
                self._answer(400, str(error).encode())
                return
            spans: list[SpanRow] = list(rows(request))
            loop.call_soon_threadsafe(store.put, spans)
            self._answer(200, b"{}")

        def do_GET(self) -> None:
            self._answer(200, b"ok\n")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - overrides
            logger.debug(format, *args)

    return ThreadingHTTPServer((host, port), Handler)


async def serve(postgres: str, grpc_address: str, http_address: str) -> None:
    """Receive until SIGTERM or SIGINT, then write what is queued."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)

    async with asyncpg.create_pool(postgres, min_size=1, max_size=2) as pool:
        store = SpanStore(pool)
        await store.prepare()
        background = [asyncio.create_task(store.run()), asyncio.create_task(store.sweep())]

        server = grpc.aio.server(options=[("grpc.max_receive_message_length", MAX_BODY_BYTES)])
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            GrpcReceiver(store), server
        )
        server.add_insecure_port(grpc_address)
        await server.start()

        host, _, port = http_address.rpartition(":")
        receiver = http_server(host, int(port), store, loop)
        thread = threading.Thread(target=receiver.serve_forever, name="otlp-http", daemon=True)
        thread.start()
        logger.info("receiving spans on %s (gRPC) and %s (HTTP)", grpc_address, http_address)

        await stopping.wait()
        await server.stop(grace=2)
        await asyncio.to_thread(receiver.shutdown)
        receiver.server_close()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await store.flush()


def main() -> None:
    """Parse the arguments and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    # Not an argument: a DSN may hold a password, and arguments are everybody's to read.
    parser.add_argument("--grpc", required=True, help="HOST:PORT for OTLP over gRPC")
    parser.add_argument("--http", required=True, help="HOST:PORT for OTLP over HTTP")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(serve(load(PlatformSettings).postgres_dsn, arguments.grpc, arguments.http))


if __name__ == "__main__":
    main()
