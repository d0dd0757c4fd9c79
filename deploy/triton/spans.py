"""Spans of the requests that Triton answered, made and sent by a thread of their own."""

import http.client
import json
import queue
import re
import secrets
import threading
import time
from urllib.parse import urlsplit

SPAN_QUEUE_LENGTH = 2048
SPAN_BATCH = 512
SPAN_SECONDS = 0.5
TRACEPARENT = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class Spans:
    """Sends spans of service `triton` as OTLP over HTTP; drops them while that does not work."""

    def __init__(self, url):
        self._url = urlsplit(url)
        self.on = bool(self._url.netloc)
        self._queue = queue.Queue(SPAN_QUEUE_LENGTH)
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        if url:
            self._thread.start()

    def add(self, traceparent, name, started, seconds, attributes):
        """Continue a sampled trace with a span; answers what is to be passed on."""
        parts = TRACEPARENT.fullmatch(traceparent)
        if parts is None:
            return ""
        trace_id, parent_id, flags = parts.groups()
        if not self.on or not int(flags, 16) & 1:
            return traceparent
        span_id = secrets.token_hex(8)
        span = {
            "traceId": trace_id,
            "spanId": span_id,
            "parentSpanId": parent_id,
            "name": name,
            "kind": 2,
            "startTimeUnixNano": str(int(started * 1e9)),
            "endTimeUnixNano": str(int((started + seconds) * 1e9)),
            "attributes": [
                {
                    "key": key,
                    "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value},
                }
                for key, value in attributes.items()
            ],
            "status": {},
        }
        try:
            self._queue.put_nowait(span)
        except queue.Full:
            # The collector is slow: whoever comes next hangs below the span before.
            return traceparent
        return f"00-{trace_id}-{span_id}-{flags}"

    def close(self):
        """Send what is queued, within a few seconds."""
        if self._thread.is_alive():
            try:
                self._queue.put(None, timeout=1)
            except queue.Full:
                return
            self._thread.join(timeout=3)

    def _run(self):
        while True:
            spans = [self._queue.get()]
            until = time.monotonic() + SPAN_SECONDS
            while spans[-1] is not None and len(spans) < SPAN_BATCH:
                try:
                    spans.append(self._queue.get(timeout=max(0, until - time.monotonic())))
                except queue.Empty:
                    break
            last = spans[-1] is None
            self._send([span for span in spans if span is not None])
            if last:
                return

    def _send(self, spans):
        if not spans:
            return
        resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "triton"}}]}
        scope_spans = [{"scope": {"name": "headrace.triton"}, "spans": spans}]
        body = json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": scope_spans}]})
        connection = http.client.HTTPConnection(self._url.netloc, timeout=2)
        try:
            connection.request("POST", self._url.path, body, {"Content-Type": "application/json"})
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return
        finally:
            connection.close()
