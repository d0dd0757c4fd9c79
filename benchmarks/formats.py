"""One sample in each format that ingestion takes, and a registry of the one schema that Avro needs."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fastavro

from headrace.events.ingestion.v1.events_pb2 import Sample, Value

Row = Mapping[str, object]
SCHEMA_ID = 1
_AVRO_TYPES = {str: "string", float: "double", int: "long"}


@dataclass(frozen=True)
class Format:
    """How a row is written, and how its event says so."""

    content_type: str
    write: Callable[[Row], bytes]


def _json(row: Row) -> bytes:
    return json.dumps(row, separators=(",", ":")).encode()


def _protobuf(row: Row) -> bytes:
    def value(given: object) -> Value:
        if isinstance(given, int):
            return Value(int_value=given)
        return Value(double_value=given) if isinstance(given, float) else Value(string_value=str(given))

    return Sample(fields={name: value(given) for name, given in row.items()}).SerializeToString()


def avro_schema(row: Row) -> dict[str, Any]:
    """What rows like this one are written by."""
    fields = [{"name": name, "type": _AVRO_TYPES[type(given)]} for name, given in row.items()]
    return {"type": "record", "name": "Sample", "fields": fields}


class _Avro:
    """A writer of rows that are all like the first, or have a text in the place of a number."""

    def __init__(self) -> None:
        self._schemas: dict[tuple[type, ...], Any] = {}

    def __call__(self, row: Row) -> bytes:
        shape = tuple(map(type, row.values()))
        if shape not in self._schemas:
            self._schemas[shape] = fastavro.parse_schema(avro_schema(row))
        written = io.BytesIO(b"\0" + SCHEMA_ID.to_bytes(4, "big"))
        written.seek(0, io.SEEK_END)
        fastavro.schemaless_writer(written, self._schemas[shape], row)
        return written.getvalue()


FORMATS = {
    "json": Format("application/json", _json),
    "protobuf": Format("application/protobuf", _protobuf),
    "avro": Format("application/avro", _Avro()),
}


@contextmanager
def registry(row: Row) -> Iterator[str]:
    """The address of what answers with the schema of rows like this one, as a schema registry does."""
    answer = json.dumps({"schema": json.dumps(avro_schema(row))}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(
                HTTPStatus.OK if self.path == f"/schemas/ids/{SCHEMA_ID}" else HTTPStatus.NOT_FOUND
            )
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            serving.join()
