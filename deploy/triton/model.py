"""What answers requests inside Triton: a model, the prediction log, and the request's span.

Triton's Python backend runs one process of this for each instance of a model version. The inference service
copies it and its neighbours beside the model's file, says in `version.json` what that is, and names in the
model's configuration the deployment, the topic, and which requests are logged. It runs in Triton's own
environment (deploy/triton/runtime.in) and imports nothing of Headrace.

Neither log nor spans hold a request back: both are built and sent on other threads, and where those fall
behind they are dropped; lost predictions are counted in Triton's log.

The caller's trace context comes as the header `traceparent`, which Triton is started to forward as a
parameter. Triton's own OpenTelemetry mode is not used: under concurrent requests it ends the whole server
(two threads touch one request's span), and it traces what the caller chose not to.
"""

import http.client
import itertools
import json
import math
import os
import queue
import re
import secrets
import sys
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import confinement
import model_files
import numpy as np
import orjson
import triton_python_backend_utils as pb_utils
from class_names import ClassNames
from sampling import MIRROR_ID, Sampling, is_traced

# Where the batch before took so long, callers are asked whether they still wait: so long their requests did.
# Each question goes to Triton and back, and takes some 40 microseconds.
PATIENCE_SECONDS = 0.05
# For loading and trial together: a little later the inference service gives up, without a reason to tell.
LOAD_SECONDS = 270.0
# How long sizes of batches are tried at most, beyond the first two.
TRIAL_SECONDS = 30.0

QUEUE_LENGTH = 20_000
GATHER_SECONDS = 0.05
REPORT_SECONDS = 10.0
# Predictions are found by their ids, and no index takes a text of any length; of gRPC Envoy refuses such ids.
MAX_ID_BYTES = 256
# Whoever is named by a longer text could not be erased.
MAX_SUBJECT_LENGTH = 4096
MAX_SEGMENT_BYTES = 64
# A segment that is none, so that whoever looks at quality sees that requests are wrong.
NO_SEGMENT = "?"
# A request of the control plane's own, to see whether this process lives.
TRIAL = "headrace_trial"
# Parameters that are no JSON: such a request is answered and not logged, for nobody knows whose it is.
UNREADABLE = "?"
# The parameter of a request that holds several, put together by the inference service (merged_calls.py).
MERGED = "headrace_requests"
# Larger tensors are logged by shape alone: the log is for features and answers, not for images.
MAX_LOGGED_ELEMENTS = 4096

SPAN_QUEUE_LENGTH = 2048
SPAN_BATCH = 512
SPAN_SECONDS = 0.5
TRACEPARENT = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")

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


class TritonPythonModel:
    """One version of one deployment."""

    def initialize(self, args):
        """Load the model and try it; raising here makes Triton refuse the version."""
        until = time.monotonic() + LOAD_SECONDS
        confinement.confine()
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"], args["model_version"])
        version = json.loads((folder / "version.json").read_bytes())
        self._classes = ClassNames(**version["classes"])
        self._inputs = [entry["name"] for entry in config["input"]]
        self._promised = {
            entry["name"]: entry["data_type"].removeprefix("TYPE_").replace("STRING", BYTES)
            for entry in config["output"]
        }
        # Shapes of one row as the client sees them: a model's vector output is a column there.
        self._outputs = {
            entry["name"]: [int(size) for size in entry["dims"]]
            for entry in config["output"]
            if entry["name"] not in version["classes"]["added"]
        }
        self._model = model_files.load(
            version["format"],
            folder / version["file"],
            self._inputs,
            list(self._outputs),
            config["max_batch_size"],
            until,
        )
        try:
            self._try(config, lambda: time.monotonic() < until)
        except BaseException:
            self._model.close()
            raise
        # How long the batch before took: so long at most the next one waited here.
        self._seconds = 0.0
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        spans = Spans(os.environ.get("HEADRACE_TRACES_URL", ""))
        self._log = PredictionLog(
            args["model_name"],
            int(args["model_version"]),
            parameters["prediction_topic"],
            spans,
            Sampling(float(parameters["log_share"])),
            _table_attributes(parameters),
        )

    def execute(self, requests):
        """Answer a batch; a request whose deadline has passed, or whose caller gave up, is not computed."""
        started = time.perf_counter()
        ask = self._seconds >= PATIENCE_SECONDS
        gone = [ask and request.is_cancelled() for request in requests]
        waiting = [request for request, is_gone in zip(requests, gone, strict=True) if not is_gone]
        try:
            answers = iter(self._infer(waiting) if waiting else ())
        finally:
            self._seconds = time.perf_counter() - started
        return [_given_up() if is_gone else next(answers) for is_gone in gone]

    def finalize(self):
        """Send what is still in the log."""
        self._log.close()
        self._model.close()

    def _infer(self, requests):
        """Responses from one run of the model."""
        arrived = time.time()
        started = time.perf_counter()
        batches = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs]
            for request in requests
        ]
        counts = [len(batch[0]) for batch in batches]
        joined = {
            name: np.concatenate([batch[index] for batch in batches])
            for index, name in enumerate(self._inputs)
        }
        try:
            answers = self._answer(
                joined, sum(counts), lambda: not all(request.is_cancelled() for request in requests)
            )
        except Exception as error:
            # Raised, and not answered as errors: Triton counts those as successes, and rollouts are judged by
            # its counts. (It also crashes where two responses share one error.)
            words = str(error) or type(error).__name__
            ended = isinstance(error, model_files.Ended)
            if ended or confinement.exhausted():
                why = "as its package did" if ended else "for its memory is used up"
                self._log.say(f"the model ends, {why}: {words}")
                self._log.close()
                os._exit(1)
            raise pb_utils.TritonModelException(f"the model failed: {words}") from None

        responses, first = [], 0
        for count in counts:
            tensors = [
                pb_utils.Tensor(name, answer[first : first + count]) for name, answer in answers.items()
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
            first += count
        callers = [
            caller
            for request, count in zip(requests, counts, strict=True)
            for caller in _callers(
                _text_of(request.request_id, ""), _text_of(request.parameters, UNREADABLE), count
            )
        ]
        self._log.put(callers, joined, answers, arrived, time.perf_counter() - started)
        return responses

    def _answer(self, inputs, rows, wanted):
        """The model's outputs by name, in the types and shapes that clients are promised."""
        found = self._model(inputs, wanted)
        answers = {
            name: np.ascontiguousarray(found[name].reshape((rows, *shape)))
            for name, shape in self._outputs.items()
        }
        self._classes.add_to(answers)
        missing = [name for name in self._promised if name not in answers]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}, which its deployment's newest version answers")
        for name, promised in self._promised.items():
            given = DATATYPES.get(answers[name].dtype, BYTES)
            if given != promised:
                raise ValueError(f"output {name} is {given}, and the signature says {promised}")
        return {name: answers[name] for name in self._promised}

    def _try(self, config, wanted):
        """Answer zeros and empty texts: a version that cannot must not get a caller's.

        One row, and more: a program that was made for a fixed number of rows fails as soon as requests meet.
        On a GPU the first batch of a size is slow, and here nobody waits for it.
        """
        until = time.monotonic() + TRIAL_SECONDS
        sizes = [rows for rows in self._model.sizes if rows <= max(1, config["max_batch_size"])]
        for place, rows in enumerate(sizes):
            if place >= 2 and time.monotonic() > until:
                break
            batch = {}
            for entry in config["input"]:
                kind = np.dtype(pb_utils.triton_string_to_numpy(entry["data_type"]))
                shape = (rows, *(max(1, int(size)) for size in entry["dims"]))
                batch[entry["name"]] = np.full(shape, b"" if kind.hasobject else 0, kind)
            self._answer(batch, rows, wanted)


class PredictionLog:
    """Prediction events and spans, made by a thread of its own."""

    def __init__(self, deployment, version, topic, spans, sampling, attributes):
        """`attributes`: of each event, beside those that all have."""
        self._deployment = deployment
        self._version = version
        self._topic = topic
        self._spans = spans
        self._sampling = sampling
        # Of each event of this process: what all have, and the beginning of its id.
        self._headers = [
            (name, value.encode())
            for name, value in {
                "ce_specversion": "1.0",
                "ce_source": "headrace/triton",
                "ce_type": "headrace.inference.prediction.v1",
                "ce_subject": deployment,
                "content-type": "application/json",
                **attributes,
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
        if len(rows) < first:
            inputs, outputs = (
                {name: tensor[rows] for name, tensor in tensors.items()} for tensors in (inputs, outputs)
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
                "on_delivery": self._delivered,
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
        self._drop(producer.flush(4))

    def _send(self, producer, logged, traced, inputs, outputs, arrived, seconds):
        when = datetime.fromtimestamp(arrived, UTC).isoformat().replace("+00:00", "Z")
        asked, answered = (
            [LoggedTensor(name, tensor) for name, tensor in tensors.items()] for tensors in (inputs, outputs)
        )
        for prediction_id, parameters, part in logged:
            try:
                self._log(producer, prediction_id, parameters, part, asked, answered, when, arrived, seconds)
            except BufferError:
                self._drop(1)
            except Exception as error:  # whatever it is, the next prediction is logged
                self.say(f"a prediction was not logged: {error!r}")
        for prediction_id, parameters in traced:
            try:
                self._trace(prediction_id, parameters, arrived, seconds)
            except Exception as error:
                self.say(f"a request was not traced: {error!r}")
        with self._lock:
            self._queued -= len(logged) + len(traced)

    def _log(self, producer, prediction_id, parameters, part, asked, answered, when, arrived, seconds):
        """Send what was asked in these rows of a batch, and answered."""
        given = json.loads(parameters) if parameters else {}
        if TRIAL in given:
            return
        event_id = f"{self._id}-{next(self._ids)}"
        # No database takes the character U+0000.
        prediction_id = _cut(prediction_id.replace("\0", "?"), MAX_ID_BYTES) or event_id
        payload = {
            "prediction_id": prediction_id,
            "deployment": self._deployment,
            "version": self._version,
            "time": when,
            "seconds": seconds,
            "inputs": [tensor.rows(part) for tensor in asked],
            "outputs": [tensor.rows(part) for tensor in answered],
            "subject": _subject(given),
            "segment": _segment(given),
            **_mirror(given, self._version),
        }
        value = orjson.dumps(payload)
        headers = [*self._headers, ("ce_id", event_id.encode()), ("ce_time", when.encode())]
        if own := self._span(_traceparent(given), prediction_id, arrived, seconds):
            headers.append(("traceparent", own.encode()))
        # A copy that is measured has none, and is to cost as much up to here.
        if self._topic:
            producer.produce(self._topic, value, self._key, headers=headers)

    def _trace(self, prediction_id, parameters, arrived, seconds):
        """Of a request that is not logged: its span alone."""
        given = json.loads(parameters)
        if TRIAL not in given:
            prediction_id = _cut(prediction_id, MAX_ID_BYTES)
            self._span(_traceparent(given), prediction_id, arrived, seconds)

    def _delivered(self, error, _message):
        if error is not None:
            self._drop(1)

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


class LoggedTensor:
    """A batch's tensor, of which the log has each request's rows.

    Made into Python's values once for all of them: what numpy takes for a call is more than one request's.
    """

    def __init__(self, name, tensor):
        self._tensor = tensor
        self._name = name
        self._datatype = DATATYPES.get(tensor.dtype, BYTES)
        self._shape = tensor.shape[1:]
        self._elements = math.prod(self._shape)
        self._values = None

    def rows(self, part):
        """As the event has them; without values where they are too many."""
        rows = part.stop - part.start
        logged = {"name": self._name, "datatype": self._datatype, "shape": [rows, *self._shape]}
        if rows * self._elements <= MAX_LOGGED_ELEMENTS:
            if self._values is None:
                self._values = self._converted()
            values = self._values[part.start * self._elements : part.stop * self._elements]
            logged["strings" if self._datatype == BYTES else "numbers"] = values
        return logged

    def _converted(self):
        flat = self._tensor.ravel()
        if self._datatype == BYTES:
            return [item.decode(errors="replace").replace("\0", "?") for item in flat]
        values = flat.astype(np.float64).tolist()
        if np.isfinite(flat).all():
            return values
        # JSON has no NaN and no infinity; Protobuf's JSON writes them as strings.
        return [
            item if math.isfinite(item) else str(item).replace("inf", "Infinity").replace("nan", "NaN")
            for item in values
        ]


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


def _given_up():
    """What nobody waits for any more. Each has its own: Triton crashes where two responses share an error."""
    error = pb_utils.TritonError("nobody waits for it any more", pb_utils.TritonError.CANCELLED)
    return pb_utils.InferenceResponse(error=error)


def _text_of(said, otherwise):
    """What a request says; of REST's requests Triton takes bytes that are no text, which fail no batch."""
    try:
        return said()
    except UnicodeDecodeError:
        return otherwise


def _callers(request_id, parameters, rows):
    """(id, parameters, rows) of each request that is in one: of several, where they were asked together."""
    if parameters and MERGED in parameters:
        try:
            merged = json.loads(json.loads(parameters)[MERGED])
            callers = [(str(own_id), str(own), int(count)) for own_id, count, own in merged]
            if sum(count for *_, count in callers) == rows and min(count for *_, count in callers) > 0:
                return callers
        except (KeyError, TypeError, ValueError):
            # Some caller's own parameter of that name.
            pass
    return [(request_id, parameters, rows)]


def _table_attributes(parameters):
    """What an event says of the dataset whose rows it becomes; nothing where there is none."""
    if not parameters["log_dataset"]:
        return {}
    return {"ce_logdataset": parameters["log_dataset"], "ce_model": parameters["model"]}


def _cut(text, limit):
    """The text's beginning that fits into so many bytes."""
    return text.encode(errors="replace")[:limit].decode(errors="ignore")


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
