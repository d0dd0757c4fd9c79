"""What answers requests inside Triton: an ONNX model, and the prediction log.

Triton's Python backend runs one process of this for each instance of a model version. The inference service
copies it beside `model.onnx` and names the deployment and the topic in the model's configuration. It runs in
Triton's own environment (numpy 1, onnxruntime, confluent-kafka) and imports nothing of Headrace.

The log never holds a request back: events are built and sent on another thread, and where that falls behind
they are dropped, counted and reported in Triton's log.
"""

import json
import os
import queue
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

QUEUE_LENGTH = 20_000
REPORT_SECONDS = 10.0
# Larger tensors are logged by shape alone: the log is for features and answers, not for images.
MAX_LOGGED_ELEMENTS = 4096

# numpy's names to the Open Inference Protocol's.
DATATYPES = {
    "bool": "BOOL",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
}


class TritonPythonModel:
    """One version of one deployment."""

    def initialize(self, args):
        """Load the model; raising here makes Triton refuse the version."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"], args["model_version"])
        self._version = args["model_version"]
        self._session = onnxruntime.InferenceSession(
            folder / "model.onnx", _options(), providers=_providers()
        )
        # Shapes of one row as the client sees them: a model's vector output is a column there.
        self._outputs = [(entry["name"], [int(size) for size in entry["dims"]]) for entry in config["output"]]
        self._inputs = [entry["name"] for entry in config["input"]]
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self._log = PredictionLog(args["model_name"], self._version, parameters["prediction_topic"])

    def execute(self, requests):
        """Answer a batch of requests with one run of the model."""
        arrived = time.time()
        started = time.perf_counter()
        batches = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs}
            for request in requests
        ]
        joined = {name: np.concatenate([batch[name] for batch in batches]) for name in self._inputs}
        try:
            answers = self._session.run([name for name, _ in self._outputs], joined)
        except Exception as error:
            failure = pb_utils.TritonError(f"the model failed: {error}", pb_utils.TritonError.INTERNAL)
            return [pb_utils.InferenceResponse(error=failure) for _ in requests]

        responses, first = [], 0
        rows = [len(batch[self._inputs[0]]) for batch in batches]
        for request, batch, count in zip(requests, batches, rows, strict=True):
            outputs = {
                name: answer[first : first + count].reshape((count, *shape))
                for (name, shape), answer in zip(self._outputs, answers, strict=True)
            }
            first += count
            tensors = [pb_utils.Tensor(name, np.ascontiguousarray(value)) for name, value in outputs.items()]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
            self._log.put(request, batch, outputs, arrived, time.perf_counter() - started)
        return responses

    def finalize(self):
        """Send what is still in the log."""
        self._log.close()


class PredictionLog:
    """Prediction events, sent by a thread of their own."""

    def __init__(self, deployment, version, topic):
        self._deployment = deployment
        self._version = int(version)
        self._topic = topic
        self._queue = queue.Queue(QUEUE_LENGTH)
        self._dropped = 0
        self._reported = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="prediction log", daemon=True)
        self._thread.start()

    def put(self, request, inputs, outputs, arrived, seconds):
        """Queue a prediction; never waits, never raises."""
        entry = (request.request_id(), _traceparent(request), inputs, outputs, arrived, seconds)
        try:
            self._queue.put_nowait(entry)
        except queue.Full:
            self._drop(1)

    def close(self):
        """Send what is queued, within a few seconds."""
        self._queue.put(None)
        self._thread.join(timeout=5)

    def _run(self):
        # Imported and connected here: a broker that is away must not delay the first answer.
        from confluent_kafka import Producer

        producer = Producer(
            {
                "bootstrap.servers": os.environ["HEADRACE_KAFKA_BOOTSTRAP"],
                "client.id": "headrace-triton",
                "acks": "all",
                "linger.ms": 20,
                "message.max.bytes": 16 << 20,
                "queue.buffering.max.messages": QUEUE_LENGTH,
                # librdkafka's own words about a broker that is away would fill Triton's log.
                "log_level": 2,
            }
        )
        while True:
            try:
                entry = self._queue.get(timeout=0.2)
            except queue.Empty:
                producer.poll(0)
                continue
            if entry is None:
                break
            try:
                key, value, headers = self._event(*entry)
                producer.produce(self._topic, value, key, headers=headers, on_delivery=self._delivered)
            except BufferError:
                self._drop(1)
            except Exception as error:  # whatever it is, the next prediction is logged
                pb_utils.Logger.log_error(f"a prediction of {self._deployment} was not logged: {error!r}")
            producer.poll(0)
        self._drop(producer.flush(4))

    def _delivered(self, error, _message):
        if error is not None:
            self._drop(1)

    def _drop(self, count):
        self._dropped += count
        if self._dropped and time.monotonic() - self._reported > REPORT_SECONDS:
            pb_utils.Logger.log_warn(
                f"{self._dropped} predictions of {self._deployment} were not logged: is the broker slow?"
            )
            self._dropped, self._reported = 0, time.monotonic()

    def _event(self, prediction_id, traceparent, inputs, outputs, arrived, seconds):
        when = datetime.fromtimestamp(arrived, UTC).isoformat().replace("+00:00", "Z")
        event_id = str(uuid.uuid4())
        payload = {
            "prediction_id": prediction_id or event_id,
            "deployment": self._deployment,
            "version": self._version,
            "time": when,
            "seconds": seconds,
            "inputs": [_tensor(name, value) for name, value in inputs.items()],
            "outputs": [_tensor(name, value) for name, value in outputs.items()],
        }
        headers = {
            "ce_specversion": "1.0",
            "ce_id": event_id,
            "ce_source": "headrace/triton",
            "ce_type": "headrace.inference.prediction.v1",
            "ce_subject": self._deployment,
            "ce_time": when,
            "content-type": "application/json",
        }
        if traceparent:
            headers["traceparent"] = traceparent
        return self._deployment.encode(), json.dumps(payload).encode(), headers


def _tensor(name, value):
    datatype = DATATYPES.get(value.dtype.name, "BYTES")
    logged = {"name": name, "datatype": datatype, "shape": list(value.shape)}
    if value.size > MAX_LOGGED_ELEMENTS:
        return logged
    flat = value.ravel()
    if value.dtype == object:
        logged["strings"] = [item.decode(errors="replace") for item in flat]
    else:
        # JSON has no NaN and no infinity; Protobuf's JSON writes them as strings.
        logged["numbers"] = [
            item if np.isfinite(item) else str(item).replace("inf", "Infinity").replace("nan", "NaN")
            for item in flat.astype(np.float64).tolist()
        ]
    return logged


def _traceparent(request):
    """The W3C trace context of the request's span in Triton; empty where it is not traced."""
    try:
        context = request.trace().get_context()
    except Exception:
        return ""
    return json.loads(context).get("traceparent", "") if context else ""


def _options():
    options = onnxruntime.SessionOptions()
    # Many small requests: threads of one run only get in each other's way.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _providers():
    available = onnxruntime.get_available_providers()
    return [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
