"""The Open Inference Protocol in the forms of asynchronous requests: its Protobuf, and the JSON of its REST.

Both become a ModelInferRequest, so that one way leads to the model and one set of errors back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import orjson
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor, triton_to_np_dtype

from headrace.events.inference.v1 import events_pb2
from headrace.inference.domain.requests import Failure
from headrace.inference.prediction_events import MAX_SUBJECT_LENGTH
from headrace.inference.use_cases.request_ports import Answer, Question, WrongRequest
from headrace.messaging.events import JSON, PROTOBUF, Event, media_type

# Predictions are found by their ids.
_MAX_ID_BYTES: Final = 256
_MALFORMED: Final = "MALFORMED_PAYLOAD"
_PROTOBUF: Final = frozenset({PROTOBUF, "application/x-protobuf"})


class InferenceForms:
    """Reads requests and writes answers, each in its form."""

    def question(self, event: Event) -> Question:
        """Read a request. Raises WrongRequest."""
        form = media_type(event.content_type)
        if form == JSON:
            request = read_json(event.data)
        elif form in _PROTOBUF:
            try:
                request = service_pb2.ModelInferRequest.FromString(event.data)
            except DecodeError as error:
                raise _malformed(f"not a ModelInferRequest: {error}") from error
        else:
            raise _malformed(f"content type {event.content_type!r} is neither {PROTOBUF} nor {JSON}")
        if request.model_name not in ("", event.subject):
            raise WrongRequest(
                "DEPLOYMENT_MISMATCH",
                f"ce_subject names the deployment {event.subject!r}, and the request {request.model_name!r}",
            )
        request.model_name = event.subject
        if len(request.id.encode()) > _MAX_ID_BYTES:
            # Envoy looks at a single request's id, and not at those of several that are asked together.
            raise WrongRequest("INVALID_ARGUMENT", f"the id is longer than {_MAX_ID_BYTES} bytes")
        if not request.id:
            # Its prediction is found by it, also where the model was asked twice.
            request.id = event.id if len(event.id.encode()) <= _MAX_ID_BYTES else ""
        return Question(request.SerializeToString(), _subject(request))

    def answer(self, response: bytes, content_type: str) -> Answer:
        """Write an answer in the form of a request with that content type."""
        read = service_pb2.ModelInferResponse.FromString(response)
        if media_type(content_type) == JSON:
            return Answer(write_json(read), read.model_version)
        return Answer(response, read.model_version)

    def failure(self, failure: Failure, attempts: int, content_type: str) -> bytes:
        """Write why there is none, in the same form."""
        if media_type(content_type) == JSON:
            return orjson.dumps(
                {
                    "code": failure.code,
                    "reason": failure.reason,
                    "error": failure.message,
                    "attempts": attempts,
                }
            )
        message = events_pb2.RequestFailed(
            code=failure.code, reason=failure.reason, error=failure.message, attempts=attempts
        )
        return message.SerializeToString(deterministic=True)


def read_json(data: bytes) -> service_pb2.ModelInferRequest:
    """Read the body of a REST request. Raises WrongRequest."""
    try:
        document = orjson.loads(data)
    except ValueError as error:
        raise _malformed(f"not JSON: {error}") from error
    fields = _object(document, "the request")
    request = service_pb2.ModelInferRequest(
        id=_text(fields.get("id", ""), "id"), model_name=_text(fields.get("model_name", ""), "model_name")
    )
    request.model_version = _text(fields.get("model_version", ""), "model_version")
    _put_parameters(request.parameters, fields.get("parameters", {}), "parameters")
    inputs = _list(fields.get("inputs"), "inputs")
    for index, entry in enumerate(inputs):
        where = f"inputs[{index}]"
        tensor = _object(entry, where)
        datatype = _text(tensor.get("datatype"), f"{where}.datatype")
        shape = _list(tensor.get("shape"), f"{where}.shape")
        if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in shape):
            raise _malformed(f"{where}.shape must be sizes from 0")
        request.inputs.add(name=_text(tensor.get("name"), f"{where}.name"), datatype=datatype, shape=shape)
        _put_parameters(request.inputs[-1].parameters, tensor.get("parameters", {}), f"{where}.parameters")
        request.raw_input_contents.append(_raw(tensor.get("data"), datatype, shape, where))
    for index, entry in enumerate(_list(fields.get("outputs", []), "outputs")):
        output = _object(entry, f"outputs[{index}]")
        request.outputs.add(name=_text(output.get("name"), f"outputs[{index}].name"))
        where = f"outputs[{index}].parameters"
        _put_parameters(request.outputs[-1].parameters, output.get("parameters", {}), where)
    return request


def write_json(response: service_pb2.ModelInferResponse) -> bytes:
    """The body of a REST response; numbers that JSON does not have are texts, as Protobuf's JSON has them."""
    outputs = [
        {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
            "data": _values(output.datatype, raw),
        }
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    ]
    return orjson.dumps(
        {
            "model_name": response.model_name,
            "model_version": response.model_version,
            "id": response.id,
            "outputs": outputs,
        }
    )


def _subject(request: service_pb2.ModelInferRequest) -> str:
    if "subject" not in request.parameters:
        return ""
    given = request.parameters["subject"]
    subject: str = given.string_param
    if (
        given.WhichOneof("parameter_choice") != "string_param"
        or len(subject) > MAX_SUBJECT_LENGTH
        or "\0" in subject
    ):
        # The answer is stored, and nobody could erase it.
        raise WrongRequest(
            "INVALID_SUBJECT",
            f"the parameter subject must be a text of at most {MAX_SUBJECT_LENGTH} characters without U+0000",
        )
    return subject


def _values(datatype: str, raw: bytes) -> list[object]:
    if datatype == "BYTES":
        return [item.decode(errors="replace") for item in deserialize_bytes_tensor(raw)]
    if datatype == "BF16":
        # numpy has no such type: the upper half of a float32.
        array = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    else:
        array = np.frombuffer(raw, dtype=triton_to_np_dtype(datatype))
    values: list[object] = array.tolist()
    if array.dtype.kind == "f":
        for index in np.flatnonzero(~np.isfinite(array)).tolist():
            values[index] = _NO_NUMBERS[str(values[index])]
    return values


# What JSON has no numbers for, in Protobuf's words, which numpy and Python read too.
_NO_NUMBERS: Final[Mapping[str, str]] = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


# numpy's kinds of what JSON may hold, for each kind of datatype.
_TAKEN: Final[Mapping[str, str]] = {"f": "iuf", "i": "iu", "u": "iu", "b": "b"}


def _raw(data: object, datatype: str, shape: Sequence[object], where: str) -> bytes:
    """A tensor's bytes, from its flat or nested list."""
    flat = _flattened(_list(data, f"{where}.data"))
    count = 1
    for size in shape:
        assert isinstance(size, int)
        count *= size
    if len(flat) != count:
        raise _malformed(f"{where}.data has {len(flat)} values, and its shape {list(shape)} takes {count}")
    if datatype == "BYTES":
        texts = [_text(item, f"{where}.data").encode() for item in flat]
        serialized: bytes = serialize_byte_tensor(np.array(texts, dtype=object)).item() if texts else b""
        return serialized
    dtype = triton_to_np_dtype(datatype)
    if dtype is None or datatype == "BF16":
        raise _malformed(f"{where}.datatype {datatype!r} cannot be sent as JSON")
    kind = np.dtype(dtype)
    try:
        values: NDArray[np.generic] = np.array(flat) if flat else np.empty(0, kind)
    except (TypeError, ValueError, OverflowError) as error:
        raise _malformed(f"{where}.data does not hold values of {datatype}") from error
    if flat and values.dtype.kind not in _TAKEN[kind.kind]:
        raise _malformed(f"{where}.data does not hold values of {datatype}")
    if flat and kind.kind in "iu":
        bounds = np.iinfo(kind)
        if int(values.min()) < bounds.min or int(values.max()) > bounds.max:
            raise _malformed(f"{where}.data has a number that {datatype} cannot hold")
    with np.errstate(over="ignore"):
        return values.astype(kind.newbyteorder("<")).tobytes()


def _flattened(data: Sequence[object]) -> Sequence[object]:
    # Row by row, without recursion: how deep it is nested is its sender's choice.
    while data and all(isinstance(item, list) for item in data):
        data = [item for part in data if isinstance(part, list) for item in part]
    return data


# Of REST's extension for binary tensors.
_BINARY: Final = frozenset({"binary_data_size", "binary_data", "binary_data_output"})


def _put_parameters(into: Mapping[str, service_pb2.InferParameter], given: object, where: str) -> None:
    for name, value in _object(given, where).items():
        if name in _BINARY:
            if value is False:
                continue
            raise _malformed(f"{where}.{name}: tensors are JSON here; send binary ones as Protobuf")
        if isinstance(value, bool):
            into[name].bool_param = value
        elif isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
            into[name].int64_param = value
        elif isinstance(value, float):
            into[name].double_param = value
        else:
            into[name].string_param = _text(value, f"{where}.{name}")


def _object(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise _malformed(f"{where} must be an object")
    return value


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        raise _malformed(f"{where} must be a list")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _malformed(f"{where} must be text")
    return value


def _malformed(message: str) -> WrongRequest:
    return WrongRequest(_MALFORMED, message)
