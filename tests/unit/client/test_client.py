from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka.errors import KafkaConnectionError, MessageSizeTooLargeError
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.api.inference.v1 import inference_pb2, inference_pb2_grpc
from headrace.client import HeadraceClient, Targets
from headrace.client.inference_protocol import InferenceProtocol
from headrace.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from headrace.messaging import topics
from headrace.messaging.dataschema import schema_version
from headrace.messaging.events import Event, encode
from headrace.rpc.client import channel
from headrace.rpc.server import ServiceBinding, serve
from headrace.runtime.health import Health


def write_stack(folder: Path, content: object) -> Path:
    (folder / "stack.json").write_text(json.dumps(content))
    return folder


def test_a_stacks_file_names_its_parts_and_the_environment_overrides_them(tmp_path: Path) -> None:
    stack = {"pid": 1, "targets": {"scheduling": "127.0.0.1:1", "kafka": "127.0.0.1:2"}, "logs": "/logs"}
    environment = {"HEADRACE_KAFKA_BOOTSTRAP": "broker:9092"}
    targets = Targets.discover(write_stack(tmp_path, stack), environment)
    assert targets.address("scheduling") == "127.0.0.1:1"
    assert targets.address("kafka") == "broker:9092"
    assert targets.logs == Path("/logs")
    assert not targets.kafka_idempotence


def test_an_address_that_nobody_names_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        Targets.discover(tmp_path, {}).address("registry")
    assert caught.value.reason == "NO_TARGET"
    assert "HEADRACE_REGISTRY_TARGET" in caught.value.metadata["next"]


def test_the_data_folder_comes_from_the_environment(tmp_path: Path) -> None:
    write_stack(tmp_path, {"targets": {"kafka": "127.0.0.1:2"}})
    targets = Targets.discover(None, {"HEADRACE_DATA": str(tmp_path)})
    assert targets.address("kafka") == "127.0.0.1:2"


@pytest.mark.parametrize("content", [[], {}, {"targets": []}])
def test_a_broken_stack_file_is_told(tmp_path: Path, content: object) -> None:
    with pytest.raises(FailedPrecondition, match="is not a stack's file"):
        Targets.discover(write_stack(tmp_path, content), {})


class Recorder:
    """Stands in for the producer."""

    def __init__(self) -> None:
        self.published: list[tuple[str, str, Event]] = []
        self.outcome: Exception | None = None
        self.silent = False

    async def publish_all(self, topic: str, keyed: Sequence[tuple[str, Event]]) -> None:
        if self.outcome is not None:
            raise self.outcome
        if self.silent:
            await asyncio.Future()
        self.published += [(topic, key, event) for key, event in keyed]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()

    async def producer(_: HeadraceClient) -> Recorder:
        return recorder

    monkeypatch.setattr(HeadraceClient, "_sample_producer", producer)
    return recorder


async def test_samples_become_cloudevents_of_their_dataset(recorded: Recorder) -> None:
    async with HeadraceClient(Targets({"kafka": "k:1"})) as client:
        assert await client.produce("d", [{"id": "a", "x": 1}, b'{"id": "b"}', '{"x": 2}'], key="id") == 3
    assert [(topic, key) for topic, key, _ in recorded.published] == [
        (topics.SAMPLES, "a"),
        (topics.SAMPLES, "b"),
        (topics.SAMPLES, ""),
    ]
    event = recorded.published[0][2]
    assert (event.type, event.subject, event.content_type) == (
        "headrace.ingestion.sample.v1",
        "d",
        "application/json",
    )
    assert json.loads(event.data) == {"id": "a", "x": 1}
    assert len({event.id for _, _, event in recorded.published}) == 3


async def test_samples_name_the_schema_that_they_were_written_by_where_they_are_told_to(
    recorded: Recorder,
) -> None:
    async with HeadraceClient(Targets({"kafka": "k:1"})) as client:
        await client.produce("d", ['{"id": "a"}'], key="id")
        await client.produce("d", ['{"id": "a"}'], key="id", schema_version=2)
    headers = [dict(encode(event)[0]) for _, _, event in recorded.published]
    assert [each.get("ce_dataschema") for each in headers] == [None, b"datasets/d/schemas/2"]
    assert [schema_version(event) for _, _, event in recorded.published] == [None, 2]


@pytest.mark.parametrize("sample", [b"{", "[1]", {"x": float("nan")}, {"x": object()}])
async def test_what_is_no_json_object_is_refused(recorded: Recorder, sample: Any) -> None:
    async with HeadraceClient(Targets({"kafka": "k:1"})) as client:
        with pytest.raises(InvalidArgument, match="sample 1 is not"):
            await client.produce("d", [sample], key="id")


async def test_feedback_is_keyed_by_prediction(recorded: Recorder) -> None:
    async with HeadraceClient(Targets({"kafka": "k:1"})) as client:
        assert await client.feed_back("d", {"p1": 1, "p2": "benign"}) == 2
    (topic, key, first), (_, _, second) = recorded.published
    assert (topic, key, first.subject) == (topics.FEEDBACK, "p1", "d")
    assert json.loads(first.data) == {"deployment": "d", "prediction_id": "p1", "number": 1}
    assert json.loads(second.data)["text"] == "benign"


async def test_labels_may_be_numpys(recorded: Recorder) -> None:
    async with HeadraceClient(Targets({"kafka": "k:1"})) as client:
        await client.feed_back("d", {"p1": np.float32(0.5), "p2": np.int64(3), "p3": np.str_("benign")})
    labels = [json.loads(event.data) for _, _, event in recorded.published]
    assert [label.get("number", label.get("text")) for label in labels] == [0.5, 3, "benign"]


@pytest.mark.parametrize("label", [float("nan"), float("-inf"), np.float32("nan"), 10**400, None, [1]])
async def test_a_label_that_is_no_finite_number_is_refused(recorded: Recorder, label: Any) -> None:
    async with HeadraceClient(Targets({"kafka": "k:1"})) as client:
        with pytest.raises(
            InvalidArgument, match="the label of p1 must be text or a finite number"
        ) as caught:
            await client.feed_back("d", {"p1": label})
    assert caught.value.reason == "INVALID_FEEDBACK"
    assert not recorded.published


async def test_an_event_that_is_too_large_is_told_apart_from_a_broker_that_is_away(
    recorded: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.client.client.PUBLISH_SECONDS", 0.01)
    async with HeadraceClient(Targets({"kafka": "k:1"})) as client:
        recorded.outcome = MessageSizeTooLargeError("9 MB")
        with pytest.raises(InvalidArgument, match="9 MB") as caught:
            await client.produce("d", [{"x": 1}], key="x")
        assert caught.value.reason == "OVERSIZE_EVENT"
        recorded.outcome = KafkaConnectionError("refused")
        with pytest.raises(Unavailable, match="refused"):
            await client.produce("d", [{"x": 1}], key="x")
        recorded.outcome = None
        recorded.silent = True
        with pytest.raises(Unavailable, match="k:1 did not take it within") as silent:
            await client.produce("d", [{"x": 1}], key="x")
    assert silent.value.reason == "BROKER_UNAVAILABLE"


class Model(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers the sum of each row, its sign as text, and the version that was asked for."""

    def __init__(self) -> None:
        self.parameters: list[dict[str, str]] = []

    async def ModelInfer(self, request: Any, _context: Any) -> Any:
        if request.model_name != "sums":
            raise NotFound("NOT_FOUND", "unknown model")
        self.parameters.append({name: value.string_param for name, value in request.parameters.items()})
        rows = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(request.inputs[0].shape)
        response = service_pb2.ModelInferResponse(
            model_name=request.model_name, model_version=request.model_version or "3", id=request.id
        )
        response.outputs.add(name="sum", datatype="FP32", shape=[len(rows)])
        response.raw_output_contents.append(rows.sum(axis=1).tobytes())
        words = [b"plus" if total > 0 else b"minus" for total in rows.sum(axis=1)]
        response.outputs.add(name="sign", datatype="BYTES", shape=[len(rows)])
        response.raw_output_contents.append(b"".join(len(w).to_bytes(4, "little") + w for w in words))
        return response


async def test_predictions_speak_the_inference_protocol() -> None:
    model = Model()
    binding = ServiceBinding(
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server, model, "inference.GRPCInferenceService"
    )
    async with serve("127.0.0.1:0", [binding], health=Health()) as server:
        target = f"127.0.0.1:{server.port}"
        async with HeadraceClient(Targets({"inference_protocol": target})) as client:
            answer = await client.predict("sums", [[1, 2], [-3, 1]], prediction_id="p")
            assert (answer.prediction_id, answer.deployment, answer.version) == ("p", "sums", "3")
            assert answer.outputs["sum"].tolist() == [3, -2]
            assert answer.outputs["sign"].tolist() == ["plus", "minus"]
            assert (await client.predict("sums", [[1, 2]], version="2")).version == "2"
            assert (await client.predict("sums", [[1, 2]], subject="p1")).prediction_id
            await client.predict("sums", [[1, 2]], segment="ward=3")
            assert model.parameters == [{}, {}, {"subject": "p1"}, {"segment": "ward=3"}]
            with pytest.raises(NotFound):
                await client.predict("other", [[1, 2]])


@pytest.mark.parametrize("segment", ["x" * 65, "ü" * 33, "a\nb", "\ud800"])
async def test_a_segment_that_would_not_be_told_apart_is_refused(segment: str) -> None:
    async with channel("127.0.0.1:1") as nowhere:
        with pytest.raises(InvalidArgument, match="at most 64 bytes") as caught:
            await InferenceProtocol(nowhere).infer(
                "d", [[1]], version="", prediction_id="p", subject="", segment=segment
            )
    assert caught.value.reason == "INVALID_SEGMENT"


class LabelTaker(inference_pb2_grpc.InferenceServiceServicer):
    """Keeps labels; half of them are of predictions in the log."""

    def __init__(self) -> None:
        self.labels: list[inference_pb2.TrueLabel] = []

    async def SubmitFeedback(self, request: Any, _context: Any) -> Any:
        self.labels += request.labels
        return inference_pb2.SubmitFeedbackResponse(
            label_count=len(request.labels), joined_count=len(request.labels) // 2
        )


async def test_feedback_may_go_by_rpc_and_says_when_it_was_known() -> None:
    taker = LabelTaker()
    binding = ServiceBinding(
        inference_pb2_grpc.add_InferenceServiceServicer_to_server,
        taker,
        "headrace.api.inference.v1.InferenceService",
    )
    known = datetime(2026, 1, 2, tzinfo=UTC)
    async with (
        serve("127.0.0.1:0", [binding], health=Health()) as server,
        HeadraceClient(Targets({"inference": f"127.0.0.1:{server.port}"})) as client,
    ):
        assert await client.submit_feedback("d", {"p1": np.int64(1), "p2": "benign"}, time=known) == 1
        assert await client.submit_feedback("d", {f"q{number}": 1 for number in range(1500)}) == 750
        with pytest.raises(InvalidArgument, match="the label of p1 must be"):
            await client.submit_feedback("d", {"p1": float("nan")})
    first, second = taker.labels[:2]
    assert (first.prediction_id, first.number, first.time.ToDatetime(UTC)) == ("p1", 1, known)
    assert (second.prediction_id, second.text) == ("p2", "benign")
    # All of one call are of one moment, so that it may be repeated.
    assert len({label.time.ToNanoseconds() for label in taker.labels[2:]}) == 1
    assert len(taker.labels) == 1502


class AskedModel(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Keeps what it is asked."""

    async def ModelInfer(self, request: Any, _context: Any) -> Any:
        self.request = request
        return service_pb2.ModelInferResponse()


@pytest.mark.parametrize(
    ("features", "numbers", "texts"),
    [
        ([["red", 1, "é"], ["", None, "b"]], [[1], [np.nan]], [["red", "é"], ["", "b"]]),
        ([["a"], [None]], None, [["a"], [""]]),
        (["7", 7.5], [[7.5]], [["7"]]),
        (np.array([[1, 2]], np.int64), [[1, 2]], None),
        (np.array([["1", 2]], object), [[2]], [["1"]]),
    ],
)
async def test_numbers_and_texts_are_sent_apart(features: Any, numbers: Any, texts: Any) -> None:
    model = AskedModel()
    binding = ServiceBinding(
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server,
        model,
        "inference.GRPCInferenceService",
    )
    async with serve("127.0.0.1:0", [binding], health=Health()) as server:
        target = f"127.0.0.1:{server.port}"
        async with HeadraceClient(Targets({"inference_protocol": target})) as client:
            await client.predict("d", features)
    sent = {
        tensor.name: (tensor.datatype, list(tensor.shape), raw)
        for tensor, raw in zip(model.request.inputs, model.request.raw_input_contents, strict=True)
    }
    expected = {}
    if numbers is not None:
        rows = np.array(numbers, np.float32)
        expected["features"] = ("FP32", list(rows.shape), rows.tobytes())
    if texts is not None:
        words = [word.encode() for row in texts for word in row]
        raw = b"".join(len(word).to_bytes(4, "little") + word for word in words)
        expected["texts"] = ("BYTES", [len(texts), len(texts[0])], raw)
    assert sent == expected


@pytest.mark.parametrize("features", [[], [[]], [[1], [2, 3]], [["x"], [1]], [["\ud800"]], 7, [[[1]]]])
async def test_features_that_are_no_rows_are_refused(features: Any) -> None:
    async with channel("127.0.0.1:1") as nowhere:
        with pytest.raises(InvalidArgument) as caught:
            await InferenceProtocol(nowhere).infer("d", features, version="", prediction_id="p", subject="")
    assert caught.value.reason == "INVALID_FEATURES"
