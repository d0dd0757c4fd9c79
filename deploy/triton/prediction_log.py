"""The prediction log: what a model was asked and answered, as events, made and sent by a thread of its own.

A request is never held back by it: where the thread or the broker falls behind, predictions are dropped, and
counted in Triton's log.
"""

import functools
import itertools
import math
import os
import queue
import sys
import threading
import time
import uuid
from datetime import UTC, datetime

import numpy as np
import orjson
from sampling import MIRROR_ID, Sampling, is_traced

QUEUE_LENGTH = 20_000
# What waits for a broker that is away: a model's memory may be bounded.
QUEUE_KIB = 64 << 10
GATHER_SECONDS = 0.05
REPORT_SECONDS = 10.0
# An event of several requests is no larger: its readers hold some hundred at once.
MAX_BATCH_BYTES = 128 << 10
# Predictions are found by their ids, and no index takes a text of any length; of gRPC Envoy refuses such ids.
MAX_ID_BYTES = 256
# Whoever is named by a longer text could not be erased.
MAX_SUBJECT_LENGTH = 4096
MAX_SEGMENT_BYTES = 64
# A segment that is none, so that whoever looks at quality sees that requests are wrong.
NO_SEGMENT = "?"
# A request of the control plane's own, to see whether this process lives.
TRIAL = "headrace_trial"
# Larger tensors are logged by shape alone: the log is for features and answers, not for images.
MAX_LOGGED_ELEMENTS = 4096

PREDICTION = "headrace.inference.prediction.v1"
PREDICTION_BATCH = "headrace.inference.prediction-batch.v1"

# numpy's types to the Open Inference Protocol's.
DATATYPES = {
    np.dtype(name): word
    for name, word in {
        "bool": "BOOL",
        "float16": "FP16",
        "float32": "FP32",
        "float64": "FP64",
        **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
        **{f"uint{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
    }.items()
}
BYTES = "BYTES"


class PredictionLog:
    """Prediction events of one version of one deployment, and the spans of its requests."""

    def __init__(self, deployment, version, parameters, spans):
        """`parameters`: of the model's configuration."""
        self._deployment = deployment
        self._version = version
        self._topic = parameters["prediction_topic"]
        self._spans = spans
        self._sampling = Sampling(float(parameters["log_share"]))
        # Of each event of this process: what all have, and the beginning of its id.
        self._headers = [
            (name, value.encode())
            for name, value in {
                "ce_specversion": "1.0",
                "ce_source": "headrace/triton",
                "ce_subject": deployment,
                "content-type": "application/json",
                **_table_attributes(parameters),
            }.items()
        ]
        self._key = deployment.encode()
        self._id = str(uuid.uuid4())
        self._ids = itertools.count(1)
        self._batches = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._queued = 0
        self._dropped = 0
        self._reported = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="prediction log", daemon=True)
        self._thread.start()

    def put(self, callers, inputs, outputs, arrived, seconds):
        """Queue a batch: (id, parameters, rows) of each request, and tensors. Never waits, never raises."""
        logged, traced, rows, first = [], [], [], 0
        for prediction_id, parameters, count in callers:
            if self._sampling.takes(prediction_id, parameters):
                logged.append((prediction_id, parameters, slice(len(rows), len(rows) + count)))
                rows.extend(range(first, first + count))
            elif self._spans.on and is_traced(parameters):
                traced.append((prediction_id, parameters))
            first += count
        if not logged and not traced:
            return
        inputs, outputs = (
            {name: _kept(tensor, rows) for name, tensor in tensors.items()} for tensors in (inputs, outputs)
        )
        size = len(logged) + len(traced)
        with self._lock:
            fits = self._queued + size <= QUEUE_LENGTH
            if fits:
                self._queued += size
        if fits:
            self._batches.put((logged, traced, inputs, outputs, arrived, seconds))
        else:
            self._drop(len(logged))

    def say(self, words):
        """Write a line into Triton's log, where standard error goes.

        Not by Triton's logger: another thread of this process hands its lines over, under a lock in shared
        memory, and a process that ends while it holds one ends the server.
        """
        now = f"{datetime.now(UTC):%m%d %H:%M:%S.%f}"
        print(f"{now} {self._deployment} {self._version}: {words}", file=sys.stderr, flush=True)

    def close(self):
        """Send what is queued, within a few seconds."""
        self._batches.put(None)
        self._thread.join(timeout=5)
        self._spans.close()

    def _run(self):
        # Imported and connected here: a broker that is away must not delay the first answer.
        from confluent_kafka import Producer

        producer = Producer(
            {
                "bootstrap.servers": os.environ["HEADRACE_KAFKA_BOOTSTRAP"],
                "client.id": "headrace-triton",
                "acks": "all",
                "linger.ms": 100,
                "message.max.bytes": 16 << 20,
                "queue.buffering.max.messages": QUEUE_LENGTH,
                "queue.buffering.max.kbytes": QUEUE_KIB,
                "delivery.report.only.error": True,
                # librdkafka's own words about a broker that is away would fill Triton's log.
                "log_level": 2,
            }
        )
        ended = False
        while not ended:
            try:
                waiting = [self._batches.get(timeout=0.2)]
            except queue.Empty:
                producer.poll(0)
                continue
            # Woken for each batch, this thread and the one that answers would take turns at the interpreter.
            if waiting[0] is not None:
                time.sleep(GATHER_SECONDS)
            while not self._batches.empty():
                waiting.append(self._batches.get())
            ended = waiting[-1] is None
            for batch in waiting[:-1] if ended else waiting:
                self._send(producer, *batch)
            producer.poll(0)
        if producer.flush(4):
            # Given up, and told as what was dropped.
            producer.purge()
            producer.poll(0)

    def _send(self, producer, logged, traced, inputs, outputs, arrived, seconds):
        batch = Batch(self._deployment, self._version, arrived, seconds, inputs, outputs)
        together = []
        for prediction_id, parameters, part in logged:
            try:
                given = orjson.loads(parameters) if parameters else {}
                if TRIAL in given:
                    continue
                request = self._request(prediction_id, given)
                traceparent = _traceparent(given)
                if (traceparent and is_traced(parameters)) or batch.is_large(part):
                    own = self._span(traceparent, request["prediction_id"], arrived, seconds)
                    self._produce(producer, PREDICTION, batch, batch.single(request, part), 1, own)
                else:
                    if traceparent:
                        request["traceparent"] = traceparent
                    together.append((request, part))
            except Exception as error:  # whatever it is, the next prediction is logged
                self.say(f"a prediction was not logged: {error!r}")
        self._send_together(producer, batch, together)
        for prediction_id, parameters in traced:
            try:
                given = orjson.loads(parameters)
                if TRIAL not in given:
                    self._span(_traceparent(given), _cut(prediction_id, MAX_ID_BYTES), arrived, seconds)
            except Exception as error:
                self.say(f"a request was not traced: {error!r}")
        with self._lock:
            self._queued -= len(logged) + len(traced)

    def _send_together(self, producer, batch, requests):
        """Send (request, its rows) as one event, or as several where that would be too large."""
        if not requests:
            return
        try:
            value = batch.several(requests)
            if len(value) <= MAX_BATCH_BYTES or len(requests) == 1:
                self._produce(producer, PREDICTION_BATCH, batch, value, len(requests))
                return
        except Exception as error:
            self.say(f"{len(requests)} predictions were not logged: {error!r}")
            return
        half = len(requests) // 2
        self._send_together(producer, batch, requests[:half])
        self._send_together(producer, batch, requests[half:])

    def _produce(self, producer, kind, batch, value, predictions, traceparent=""):
        headers = [
            *self._headers,
            ("ce_type", kind.encode()),
            ("ce_id", self._new_id().encode()),
            ("ce_time", batch.time.encode()),
        ]
        if traceparent:
            headers.append(("traceparent", traceparent.encode()))
        # A copy that is measured has none, and is to cost as much up to here.
        if not self._topic:
            return
        told = functools.partial(self._delivered, predictions)
        try:
            producer.produce(self._topic, value, self._key, headers=headers, on_delivery=told)
        except BufferError:
            self._drop(predictions)

    def _request(self, prediction_id, given):
        """What an event says of one request, beside its rows."""
        # No database takes the character U+0000.
        request = {"prediction_id": _cut(prediction_id.replace("\0", "?"), MAX_ID_BYTES) or self._new_id()}
        if given:
            request |= _named("subject", _subject(given))
            request |= _named("segment", _segment(given))
            request |= _mirror(given, self._version)
        return request

    def _new_id(self):
        return f"{self._id}-{next(self._ids)}"

    def _delivered(self, predictions, error, _message):
        if error is not None:
            self._drop(predictions)

    def _drop(self, count):
        with self._lock:
            self._dropped += count
            if not self._dropped or time.monotonic() - self._reported < REPORT_SECONDS:
                return
            dropped, self._dropped, self._reported = self._dropped, 0, time.monotonic()
        self.say(f"{dropped} predictions were not logged: is the broker slow?")

    def _span(self, traceparent, prediction_id, arrived, seconds):
        """The request's span, where its trace is recorded; answers what is to be passed on."""
        attributes = {
            "headrace.deployment": self._deployment,
            "headrace.model_version": self._version,
            "headrace.prediction_id": prediction_id,
        }
        return self._spans.add(traceparent, f"infer {self._deployment}", arrived, seconds, attributes)


class Batch:
    """Requests that were answered at once, as the events' JSON has them."""

    def __init__(self, deployment, version, arrived, seconds, inputs, outputs):
        self.time = datetime.fromtimestamp(arrived, UTC).isoformat().replace("+00:00", "Z")
        self._common = {"deployment": deployment, "version": version, "time": self.time, "seconds": seconds}
        self._inputs, self._outputs = (
            [LoggedTensor(name, tensor) for name, tensor in tensors.items()] for tensors in (inputs, outputs)
        )
        self._most_rows = min(tensor.most_rows for tensor in (*self._inputs, *self._outputs))

    def is_large(self, part):
        """Whether a request has values that are not logged; then it is an event of its own."""
        return part.stop - part.start > self._most_rows

    def single(self, request, part):
        """A `Prediction`."""
        return _json({**self._common, **request, **self._tensors(part, part.stop - part.start)})

    def several(self, requests):
        """A `PredictionBatch` of requests that are not large."""
        rows = [part.stop - part.start for _, part in requests]
        told = [{**request, "rows": count} for (request, _), count in zip(requests, rows, strict=True)]
        places = slice(requests[0][1].start, requests[-1][1].stop)
        if places.stop - places.start > sum(rows):
            places = [row for _, part in requests for row in range(part.start, part.stop)]
        return _json({**self._common, "requests": told, **self._tensors(places, max(rows))})

    def _tensors(self, places, largest):
        return {
            "inputs": [tensor.rows(places, largest) for tensor in self._inputs],
            "outputs": [tensor.rows(places, largest) for tensor in self._outputs],
        }


class LoggedTensor:
    """A batch's tensor, of which the log has some rows."""

    def __init__(self, name, tensor):
        self._name = name
        self._datatype = DATATYPES.get(tensor.dtype, BYTES)
        self._tensor = tensor
        # Of a request that has more the values are not logged.
        self.most_rows = MAX_LOGGED_ELEMENTS // max(1, math.prod(tensor.shape[1:]))

    def rows(self, places, largest):
        """Some rows as an event has them; without values where a request of so many rows has too many."""
        tensor = self._tensor[places]
        logged = {"name": self._name, "datatype": self._datatype, "shape": tensor.shape}
        if largest <= self.most_rows:
            logged["strings" if self._datatype == BYTES else "numbers"] = self._loggable(tensor.ravel())
        return logged

    def _loggable(self, flat):
        """What JSON has no number for, such as NaN, is written as Protobuf's JSON has it."""
        if self._datatype == BYTES:
            return _objects(item.decode(errors="replace").replace("\0", "?") for item in flat)
        if flat.dtype == bool:
            return flat.astype(np.uint8)
        if np.isfinite(flat).all():
            return flat
        return _objects(
            item if math.isfinite(item) else str(item).replace("inf", "Infinity").replace("nan", "NaN")
            for item in flat.tolist()
        )


def _kept(tensor, rows):
    """Some rows of a tensor; of what is too large to be logged type and shape alone: it would fill memory."""
    if math.prod(tensor.shape[1:]) > MAX_LOGGED_ELEMENTS:
        return np.broadcast_to(np.empty((), tensor.dtype), (len(rows), *tensor.shape[1:]))
    return tensor if len(rows) == len(tensor) else tensor[rows]


def _objects(values):
    """An array of Python's values."""
    return np.fromiter(values, dtype=object)


def _json(payload):
    """Numbers are written with as many digits as their type has: of a float32, those that make it again."""
    return orjson.dumps(payload, _plain, orjson.OPT_SERIALIZE_NUMPY)


def _plain(value):
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(type(value).__name__)


def _table_attributes(parameters):
    """What an event says of the dataset whose rows it becomes; nothing where there is none."""
    if not parameters["log_dataset"]:
        return {}
    return {"ce_logdataset": parameters["log_dataset"], "ce_model": parameters["model"]}


def _cut(text, limit):
    """The text's beginning that fits into so many bytes."""
    return text.encode(errors="replace")[:limit].decode(errors="ignore")


def _named(name, text):
    return {name: text} if text else {}


def _traceparent(parameters):
    """The caller's W3C trace context; empty where there is none."""
    found = parameters.get("traceparent", "")
    return found if isinstance(found, str) else ""


def _subject(parameters):
    """Whose data the request is about; empty where it names nobody. Raises for what nobody could erase."""
    found = parameters.get("subject", "")
    if not isinstance(found, str) or len(found) > MAX_SUBJECT_LENGTH or "\0" in found:
        raise ValueError(f"its subject is no text of at most {MAX_SUBJECT_LENGTH} characters without U+0000")
    return found


def _segment(parameters):
    """What kind of request it is; empty where it names none."""
    found = parameters.get("segment", "")
    # Cut to its beginning, it would count with others that begin so.
    if not isinstance(found, str) or not (found.isprintable() and len(found) <= MAX_SEGMENT_BYTES):
        return NO_SEGMENT
    return found if len(found.encode(errors="replace")) <= MAX_SEGMENT_BYTES else NO_SEGMENT


def _mirror(parameters, version):
    """What the log says of a request that a shadow was asked, too, by Envoy's headers; nothing of others."""
    mirror_id = parameters.get(MIRROR_ID, "")
    if not mirror_id or not isinstance(mirror_id, str):
        return {}
    shadow = parameters.get("x-headrace-shadow-version", "") == str(version)
    return {"mirror_id": _cut(mirror_id.replace("\0", "?"), MAX_ID_BYTES), "shadow": shadow}
