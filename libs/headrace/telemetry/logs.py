"""Log lines on stderr, each with the trace that it belongs to."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from opentelemetry import trace

# They say at INFO what we say ourselves.
_QUIET = ("aiokafka", "asyncio", "grpc", "httpx", "opentelemetry")
# While a broker is away, its client says so a hundred times a second.
_REPEAT_SECONDS = 30.0


def setup(level: str = "INFO", form: str = "text") -> None:
    """Send log records of `level` and above to stderr, as readable lines ("text") or JSON lines ("json")."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler.addFilter(RepetitionFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


class RepetitionFilter(logging.Filter):
    """Lets what libraries repeat through once in a while, with how often it was said in between.

    Two records are alike where the same line of code made them.
    """

    def __init__(self) -> None:
        super().__init__()
        # By line of code: when it was let through, and how often it was not since.
        self._said: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is let through; it gets the count where some before it were not."""
        if record.name.partition(".")[0] not in _QUIET or record.exc_info:
            return True
        line = (record.pathname, record.lineno)
        since, left_out = self._said.get(line, (float("-inf"), 0))
        if record.created - since < _REPEAT_SECONDS:
            self._said[line] = (since, left_out + 1)
            return False
        self._said[line] = (record.created, 0)
        if left_out:
            record.msg, record.args = f"{record.getMessage()} (and {left_out} more like it)", None
        return True


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
