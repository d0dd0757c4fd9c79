"""What `deploy/triton/prediction_log.py` sends, read as the service reads it."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.triton_code import triton_module

from headrace.inference.prediction_events import PREDICTION_BATCH, parse_predictions
from headrace.inference.use_cases.ports import LoggedPrediction
from headrace.messaging.events import Event, decode

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RECORDED = f"00-{'a' * 32}-{'b' * 16}-01"
UNRECORDED = f"00-{'a' * 32}-{'b' * 16}-00"


class FakeProducer:
    """A broker that takes everything, or has no room, or is away."""

    def __init__(self, behaviour: str) -> None:
        self.behaviour = behaviour
        self.events: list[Event] = []
        self.told: list[Callable[[object, object], None]] = []

    def produce(
        self, _topic: str, value: bytes, key: bytes, *, headers: Any, on_delivery: Callable[..., None]
    ) -> None:
        if self.behaviour == "full":
            raise BufferError
        event = decode(headers, value, received=NOW)
        assert key.decode() == event.subject
        self.events.append(event)
        self.told.append(on_delivery)

    def poll(self, _timeout: float) -> None:
        pass

    def flush(self, _timeout: float) -> int:
        return len(self.told) if self.behaviour == "away" else 0

    def purge(self) -> None:
        for told in self.told:
            told("purged", None)


class Runtime:
    """The module, with a producer of the test's."""

    def __init__(self, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module = module
        self._monkeypatch = monkeypatch

    def send(
        self, callers: Sequence[tuple[str, str, int]], behaviour: str = "", **tensors: np.ndarray[Any, Any]
    ) -> tuple[FakeProducer, list[str]]:
        """Log a batch; the producer and what was said of it in Triton's log."""
        producer = FakeProducer(behaviour)
        confluent = SimpleNamespace(Producer=lambda _settings: producer)
        self._monkeypatch.setitem(sys.modules, "confluent_kafka", confluent)
        parameters = {"prediction_topic": "topic", "log_share": "1.0", "log_dataset": "", "model": "m"}
        spans = SimpleNamespace(
            on=True, add=lambda traceparent, *_: traceparent.replace("b" * 16, "c" * 16), close=lambda: None
        )
        log = self.module.PredictionLog("live", 3, parameters, spans)
        said: list[str] = []
        self._monkeypatch.setattr(log, "say", said.append)
        # Said at most once in some seconds; here at once.
        self._monkeypatch.setattr(log, "_reported", -self.module.REPORT_SECONDS)
        outputs = {"label": np.arange(sum(count for *_, count in callers))}
        log.put(callers, tensors, outputs, NOW.timestamp(), 0.5)
        log.close()
        return producer, said


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    monkeypatch.setenv("HEADRACE_KAFKA_BOOTSTRAP", "nowhere")
    return Runtime(triton_module("prediction_log", monkeypatch), monkeypatch)


def read(producer: FakeProducer) -> list[LoggedPrediction]:
    return [prediction for event in producer.events for prediction in parse_predictions(event)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    recorded=st.sets(st.integers(0, 7)),
    trials=st.sets(st.integers(0, 7)),
)
def test_each_request_is_read_as_it_was_asked(
    runtime: Runtime, counts: list[int], recorded: set[int], trials: set[int]
) -> None:
    callers = [
        (
            f"id-{place}",
            json.dumps(
                {
                    "traceparent": RECORDED if place in recorded else UNRECORDED,
                    "subject": f"subject-{place}",
                    **({"headrace_trial": "1"} if place in trials else {}),
                }
            ),
            count,
        )
        for place, count in enumerate(counts)
    ]
    rows = np.arange(sum(counts) * 2, dtype=np.float32).reshape(-1, 2)
    words = np.array([[f"w{row}".encode()] for row in range(len(rows))], dtype=object)
    producer, said = runtime.send(callers, x=rows, word=words)
    assert said == []

    found = {prediction.prediction_id: prediction for prediction in read(producer)}
    assert set(found) == {f"id-{place}" for place in range(len(counts)) if place not in trials}
    assert len({prediction.event_id for prediction in found.values()}) == len(found)
    first = 0
    for place, count in enumerate(counts):
        own = slice(first, first + count)
        first += count
        if place in trials:
            continue
        one = found[f"id-{place}"]
        assert (one.deployment, one.version, one.time, one.seconds) == ("live", 3, NOW, 0.5)
        assert one.subject == f"subject-{place}"
        assert one.inputs["x"] == {
            "datatype": "FP32",
            "shape": [count, 2],
            "data": rows[own].ravel().tolist(),
        }
        assert one.inputs["word"] == {
            "datatype": "BYTES",
            "shape": [count, 1],
            "data": [f"w{row}" for row in range(own.start, own.stop)],
        }
        expected = RECORDED.replace("b" * 16, "c" * 16) if place in recorded else UNRECORDED
        assert one.traceparent == expected
    # What is in nobody's trace is one event, and each of the others its own.
    alone = [event for event in producer.events if event.type != PREDICTION_BATCH]
    assert len(alone) == len({place for place in recorded if place < len(counts)} - trials)
    assert len(producer.events) - len(alone) <= 1


def test_a_request_with_too_many_values_is_logged_by_its_shape_and_its_neighbours_whole(
    runtime: Runtime,
) -> None:
    width = 3000
    producer, _ = runtime.send([("small", "", 1), ("large", "", 2), ("other", "", 1)], x=np.zeros((4, width)))
    found = {prediction.prediction_id: prediction for prediction in read(producer)}
    assert {name: len(one.inputs["x"]["data"]) for name, one in found.items()} == {
        "small": width,
        "large": 0,
        "other": width,
    }
    assert found["large"].inputs["x"]["shape"] == [2, width]
    assert found["large"].outputs["label"]["data"] == [1, 2]


def test_an_event_is_no_larger_than_its_readers_expect(runtime: Runtime) -> None:
    text = "x" * 30_000
    names = [f"id-{number}" for number in range(9)]
    # One of them is too large by itself, and is sent all the same.
    words = np.array([[(text * (6 if name == "id-4" else 1)).encode()] for name in names], dtype=object)
    producer, _ = runtime.send([(name, "", 1) for name in names], word=words)
    assert [prediction.prediction_id for prediction in read(producer)] == names
    large = [len(event.data) > runtime.module.MAX_BATCH_BYTES for event in producer.events]
    assert large.count(True) == 1
    assert len(producer.events) < len(names)


def test_what_cannot_be_logged_takes_no_neighbour_along(runtime: Runtime) -> None:
    callers = [
        ("good", "", 1),
        ("unreadable", "?", 1),
        ("unnamed", json.dumps({"subject": 7}), 1),
        ("", "", 1),
    ]
    producer, said = runtime.send(callers, x=np.zeros((4, 1)))
    good, unnamed = read(producer)
    assert good.prediction_id == "good"
    # Nobody gave it an id, and it has one.
    assert unnamed.prediction_id
    assert len(said) == 2
    assert all("a prediction was not logged" in words for words in said)


@pytest.mark.parametrize("behaviour", ["full", "away"])
def test_what_a_broker_did_not_take_is_counted_by_requests(runtime: Runtime, behaviour: str) -> None:
    callers = [(f"id-{number}", "", 1) for number in range(5)]
    _, said = runtime.send(callers, behaviour, x=np.zeros((5, 1)))
    assert said == ["5 predictions were not logged: is the broker slow?"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0.1, -1e-40, 3e38], np.float32), [0.1, -1e-40, 3e38]),
        (np.array([0.1, 1e300], np.float64), [0.1, 1e300]),
        (np.array([0.5, 65504], np.float16), [0.5, 65504]),
        (np.array([1.5, np.nan, np.inf, -np.inf], np.float32), [1.5, "NaN", "Infinity", "-Infinity"]),
        (np.array([-(2**63), 2**63 - 1], np.int64), [-(2**63), 2**63 - 1]),
        (np.array([2**64 - 1], np.uint64), [2**64 - 1]),
        (np.array([True, False]), [1, 0]),
        (np.array(["ü".encode(), b"\xff", b"a\0b"], object), ["ü", "\ufffd", "a?b"]),
        (np.zeros((2, 0), np.float32), []),
        # Not as it lies in memory, but as it is read.
        (np.array([[1, 2], [3, 4]], np.float32).T, [1, 3, 2, 4]),
    ],
)
@pytest.mark.parametrize("split", [False, True])
def test_values_are_what_the_model_was_asked(
    runtime: Runtime, values: np.ndarray[Any, Any], expected: list[object], *, split: bool
) -> None:
    callers = [(f"id-{row}", "", 1) for row in range(len(values))] if split else [("id", "", len(values))]
    # With one between them whose trace is recorded, and that is an event of its own.
    parameters = json.dumps({"traceparent": RECORDED})
    callers[1:1] = [("between", parameters, 1)]
    place = callers[0][2]
    producer, said = runtime.send(callers, x=np.insert(values, place, values[0], axis=0))
    assert said == []
    read_back = {one.prediction_id: one.inputs["x"]["data"] for one in read(producer)}
    del read_back["between"]
    assert [value for name in sorted(read_back) for value in read_back[name]] == expected


@pytest.mark.parametrize("share", ["1.0", "0.5"])
def test_what_is_too_large_to_be_logged_does_not_wait_in_memory(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, share: str
) -> None:
    monkeypatch.setattr(runtime.module.PredictionLog, "_run", lambda _log: None)
    parameters = {"prediction_topic": "topic", "log_share": share, "log_dataset": "", "model": "m"}
    log = runtime.module.PredictionLog("live", 3, parameters, SimpleNamespace(on=False))
    image, features = np.ones((20, 64, 65)), np.ones((20, 3))
    large, small = weakref.ref(image), weakref.ref(features)
    callers = [(f"id-{place}", "{}", 1) for place in range(len(image))]
    log.put(callers, {"image": image, "features": features}, {}, NOW.timestamp(), 0.5)
    del image, features
    gc.collect()
    assert large() is None
    assert (small() is not None) == (share == "1.0")
