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

import json
import os
import time
from pathlib import Path

import confinement
import model_files
import numpy as np
import triton_python_backend_utils as pb_utils
from class_names import ClassNames
from prediction_log import BYTES, DATATYPES, MAX_ID_BYTES, PredictionLog
from spans import Spans
from watchdog import Watchdog

# Where the batch before took so long, callers are asked whether they still wait: so long their requests did.
# Each question goes to Triton and back, and takes some 40 microseconds.
PATIENCE_SECONDS = 0.05
# For loading and trial together: a little later the inference service gives up, without a reason to tell.
LOAD_SECONDS = 270.0
# How long sizes of batches are tried at most, beyond the first two.
TRIAL_SECONDS = 30.0

# Parameters that are no JSON: such a request is answered and not logged, for nobody knows whose it is.
UNREADABLE = "?"
GIVEN_UP = "nobody waits for it any more"
# The parameter of a request that holds several, put together by the inference service (merged_calls.py).
MERGED = "headrace_requests"


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
        self._log = PredictionLog(
            args["model_name"],
            int(args["model_version"]),
            parameters,
            Spans(os.environ.get("HEADRACE_TRACES_URL", "")),
        )
        self._watchdog = Watchdog(self._end)

    def execute(self, requests):
        """Answer a batch; a request whose deadline has passed, or whose caller gave up, is not computed.

        Where nobody waits for any of them, Triton is told that it failed: errors it counts as successes, and
        rollouts are judged by its counts, which are to say what callers saw.
        """
        started = time.perf_counter()
        ask = self._seconds >= PATIENCE_SECONDS
        gone = [ask and request.is_cancelled() for request in requests]
        if all(gone):
            raise pb_utils.TritonModelException(GIVEN_UP)
        refusals = [_refusal(*each) for each in zip(requests, gone, strict=True)]
        waiting = [request for request, refusal in zip(requests, refusals, strict=True) if refusal is None]
        self._watchdog.begins(waiting)
        try:
            answers = iter(self._infer(waiting) if waiting else ())
        finally:
            self._watchdog.ends()
            self._seconds = time.perf_counter() - started
        return [next(answers) if refusal is None else refusal for refusal in refusals]

    def finalize(self):
        """Send what is still in the log."""
        self._log.close()
        self._model.close()

    def _infer(self, requests):
        """Responses from one run of the model; where nobody waits for any of them, it failed."""
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
                self._end(f"{'its package did' if ended else 'its memory is used up'}: {words}")
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
        seconds = time.perf_counter() - started
        self._log.put(callers, joined, answers, arrived, seconds)
        if seconds >= PATIENCE_SECONDS and all(request.is_cancelled() for request in requests):
            raise pb_utils.TritonModelException(GIVEN_UP)
        return responses

    def _end(self, why):
        """End this process, which the inference service has loaded anew."""
        self._log.say(f"the model's process ends: {why}")
        self._log.close()
        os._exit(1)

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


def _refusal(request, is_gone):
    """The answer to a request that is not computed, None to the others; each has an error of its own.

    Triton crashes where two responses share one.
    """
    if is_gone:
        error = pb_utils.TritonError(GIVEN_UP, pb_utils.TritonError.CANCELLED)
    elif len(_text_of(request.request_id, "").encode()) > MAX_ID_BYTES:
        # Envoy looks at gRPC's alone.
        words = f"the id is longer than {MAX_ID_BYTES} bytes"
        error = pb_utils.TritonError(words, pb_utils.TritonError.INVALID_ARG)
    else:
        return None
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
