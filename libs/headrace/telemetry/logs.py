"""Log lines on stderr, each with the trace that it belongs to."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from opentelemetry import trace

# They say at INFO what we say ourselves.
_QUIET = ("aiokafka", "asyncio", "grpc", "opentelemetry")


def setup(level: str = "INFO", form: str = "text") -> None:
    """Send log records of `level` and above to stderr, as readable lines ("text") or JSON lines ("json")."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO  headrace.rpc.server: message trace=4bf9...`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, and the traceback below it."""
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {record.getMessage()}"
        trace_id, _ = _current_ids()
        if trace_id:
            line += f" trace={trace_id}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, trace_id, span_id, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        entry = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        trace_id, span_id = _current_ids()
        if trace_id:
            entry |= {"trace_id": trace_id, "span_id": span_id}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _current_ids() -> tuple[str, str]:
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return "", ""
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"
