"""Requests in JSON and Protobuf become one ModelInferRequest, and answers go back in the request's form."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.async_requests import event
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor, triton_to_np_dtype

from headrace.events.inference.v1 import events_pb2
from headrace.inference.domain.requests import Failure
from headrace.inference.inference_forms import InferenceForms, read_json, write_json
from headrace.inference.use_cases.request_ports import WrongRequest
from headrace.messaging.events import JSON, PROTOBUF

FORMS = InferenceForms()


def body(**tensor: Any) -> bytes:
    entry = {"name": "features", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2], **tensor}
    return json.dumps({"inputs": [entry]}).encode()


def test_json_becomes_the_protocols_message() -> None:
    document = {
        "id": "mine",
        "parameters": {"subject": "c-1", "top": 3, "exact": True, "share": 0.5},
        "inputs": [
            {"name": "features", "shape": [2, 2], "datatype": "FP32", "data": [[1, 2], [3, 4.5]]},
            {"name": "texts", "shape": [2, 1], "datatype": "BYTES", "data": ["rot", "größer"]},
        ],
        "outputs": [
            {"name": "label"},
            {"name": "probabilities", "parameters": {"classification": 2, "binary_data": False}},
        ],
    }
    question = FORMS.question(replace(event(), data=json.dumps(document).encode()))
    request = service_pb2.ModelInferRequest.FromString(question.payload)
    assert (request.model_name, request.id, question.subject) == ("live", "mine", "c-1")
    assert [list(tensor.shape) for tensor in request.inputs] == [[2, 2], [2, 1]]
    assert np.frombuffer(request.raw_input_contents[0], "<f4").tolist() == [1, 2, 3, 4.5]
    texts = np.array([b"rot", "größer".encode()], dtype=object)
    assert request.raw_input_contents[1] == serialize_byte_tensor(texts).item()
    assert [output.name for output in request.outputs] == ["label", "probabilities"]
    assert not request.outputs[0].parameters
    assert list(request.outputs[1].parameters) == ["classification"]
    assert request.outputs[1].parameters["classification"].int64_param == 2
    assert request.parameters["top"].int64_param == 3
    assert request.parameters["exact"].bool_param
    assert request.parameters["share"].double_param == 0.5


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "not JSON"),
        (b"[]", "the request must be an object"),
        (b"{}", "inputs must be a list"),
        (body(shape=[1, 3]), "has 2 values"),
        (body(shape=[-1, 2]), "shape must be sizes"),
        (body(shape=[True, 2]), "shape must be sizes"),
        (body(datatype="FP13"), "cannot be sent as JSON"),
        (body(datatype="BF16"), "cannot be sent as JSON"),
        (body(data=["a", "b"]), "does not hold values of FP32"),
        (body(data=[1, None]), "does not hold values of FP32"),
        (body(data=[[1], 2]), "does not hold values of FP32"),
        (body(datatype="INT8", data=[1, 300]), "INT8 cannot hold"),
        (body(datatype="UINT8", data=[-1, 3]), "UINT8 cannot hold"),
        (body(datatype="INT32", data=[1, 2.5]), "does not hold values of INT32"),
        (body(datatype="BOOL", data=[0, 1]), "does not hold values of BOOL"),
        (body(datatype="BYTES", data=[1, 2]), "must be text"),
        (body(parameters={"binary_data_size": 8}), "binary"),
        (b'{"inputs": [], "outputs": [{"name": "a", "parameters": {"binary_data": true}}]}', "binary"),
        (b'{"inputs": [], "parameters": {"binary_data_output": true}}', "binary"),
        (b'{"inputs": [], "id": 7}', "id must be text"),
    ],
)
def test_wrong_json_says_what_is_wrong(data: bytes, words: str) -> None:
    with pytest.raises(WrongRequest, match=words) as raised:
        read_json(data)
    assert raised.value.reason == "MALFORMED_PAYLOAD"


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for content_type in (JSON, PROTOBUF, "text/plain"):
        with suppress(WrongRequest):
            FORMS.question(replace(event(), data=data, content_type=content_type))


def test_a_request_without_an_id_gets_its_events() -> None:
    message = service_pb2.ModelInferRequest()
    question = FORMS.question(replace(event("r9"), data=message.SerializeToString(), content_type=PROTOBUF))
    assert service_pb2.ModelInferRequest.FromString(question.payload).id == "r9"


@pytest.mark.parametrize("content_type", [JSON, PROTOBUF])
def test_an_id_that_no_index_takes_is_refused(content_type: str) -> None:
    # Characters of two bytes.
    message = service_pb2.ModelInferRequest(id="ü" * 129).SerializeToString()
    data = message if content_type == PROTOBUF else json.dumps({"id": "ü" * 129, "inputs": []}).encode()
    with pytest.raises(WrongRequest, match="longer than 256 bytes") as raised:
        FORMS.question(replace(event(), data=data, content_type=content_type))
    assert (raised.value.code, raised.value.reason) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT")


def test_a_request_for_another_deployment_than_its_event_says_is_refused() -> None:
    message = service_pb2.ModelInferRequest(model_name="other")
    with pytest.raises(WrongRequest) as raised:
        FORMS.question(replace(event(), data=message.SerializeToString(), content_type=PROTOBUF))
    assert raised.value.reason == "DEPLOYMENT_MISMATCH"


def test_an_answer_goes_back_in_the_requests_form() -> None:
    response = service_pb2.ModelInferResponse(model_name="live", model_version="3", id="r1")
    response.outputs.add(name="label", datatype="INT64", shape=[2])
    response.raw_output_contents.append(np.array([1, 0], "<i8").tobytes())
    response.outputs.add(name="name", datatype="BYTES", shape=[1])
    response.raw_output_contents.append(serialize_byte_tensor(np.array([b"yes"], dtype=object)).item())
    assert FORMS.answer(response.SerializeToString(), PROTOBUF).payload == response.SerializeToString()
    assert FORMS.answer(response.SerializeToString(), PROTOBUF).version == "3"
    assert json.loads(write_json(response)) == {
        "model_name": "live",
        "model_version": "3",
        "id": "r1",
        "outputs": [
            {"name": "label", "datatype": "INT64", "shape": [2], "data": [1, 0]},
            {"name": "name", "datatype": "BYTES", "shape": [1], "data": ["yes"]},
        ],
    }


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "BF16"])
def test_a_number_that_json_does_not_have_is_a_text(datatype: str) -> None:
    values = np.array([1.5, np.nan, np.inf, -np.inf], np.float32)
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="scores", datatype=datatype, shape=[4])
    # A BF16 is the upper half of a float32.
    halves = (values.view("<u4") >> 16).astype("<u2")
    array = halves if datatype == "BF16" else values.astype(triton_to_np_dtype(datatype))
    response.raw_output_contents.append(array.tobytes())
    (output,) = json.loads(write_json(response))["outputs"]
    assert output["data"] == [1.5, "NaN", "Infinity", "-Infinity"]
    # Whoever reads them as numbers has the model's.
    assert np.array_equal(np.array(output["data"], dtype=np.float32), values, equal_nan=True)


def test_a_failure_has_both_forms() -> None:
    failure = Failure("NOT_FOUND", "NOT_FOUND", "no model")
    told = events_pb2.RequestFailed.FromString(FORMS.failure(failure, 2, PROTOBUF))
    assert json.loads(FORMS.failure(failure, 2, JSON)) == {
        "code": told.code,
        "reason": told.reason,
        "error": told.error,
        "attempts": told.attempts,
    }


@pytest.mark.parametrize("subject", [4711, True, "x" * 4097, "a\0b"])
def test_whoever_could_not_be_erased_is_refused(subject: object) -> None:
    document = {"inputs": [], "parameters": {"subject": subject}}
    with pytest.raises(WrongRequest) as caught:
        FORMS.question(replace(event(), data=json.dumps(document).encode()))
    assert caught.value.reason == "INVALID_SUBJECT"
