"""Small requests that are asked at the same moment, asked in one call.

A call costs this process, Envoy and Triton more than a small model does. Requests to one deployment whose
tensors have the same names, types and row shapes become one request for all their rows, and its answer is cut
by rows again. What each would have been alone goes along as a parameter, for the prediction log
(deploy/triton/model.py).

Nobody waits for others to come. Where a merged call fails for another reason than that there is no room, each
is asked alone: what is wrong with one must not be its neighbours' failure.

A merged call has the earliest deadline of its requests. They are alike, so that it seldom passes before there
is an answer; when it does, the call is taken back, and those that have time left are asked anew.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2
from tritonclient.utils import triton_to_np_dtype

from headrace.inference.domain.requests import Cause
from headrace.inference.use_cases.request_ports import CallFailed, DataPlaneCalls

MERGED_PARAMETER: Final = "headrace_requests"
"""[[id, rows, parameters as JSON], ...]: the requests that are in one, in the order of their rows."""

# Bytes of tensors; of larger ones the copying costs as much as the call.
_SMALL_BYTES: Final = 16 << 10
# Parameters of text that go along for each request; others are the model's.
_LOGGED: Final = ("subject", "segment")
_LENGTH_BYTES: Final = 4

_Shape = tuple[str, str, tuple[int, ...]]
_Form = tuple[str, tuple[_Shape, ...]]
"""Deployment, and name, datatype and shape of one row of each input."""
_Kind = tuple[_Form, int]
"""What requests must have in common to be asked together; the second is how near its deadline is."""

# Whoever has so long is asked together with those who have any time: hardly a call takes longer.
_LONG_SECONDS: Final = 32.0


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request that may be merged, and who waits for its answer."""

    message: service_pb2.ModelInferRequest
    raw: bytes
    rows: int
    until: float | None
    """Its deadline, by the loop's clock."""
    traceparent: str
    answer: asyncio.Future[bytes]


class MergedCalls:
    """Asks with several requests in one call, where that makes no difference to any of them."""

    def __init__(
        self,
        calls: DataPlaneCalls,
        *,
        most_rows: int,
        rows_of: Callable[[str], int],
        mergeable: Callable[[str], bool],
    ) -> None:
        """`most_rows` of one call, and no more than `rows_of` its deployment, which takes no larger request.

        `mergeable`: whether all requests to a deployment come to one version. Where several share its traffic
        each request is asked alone, so that their shares are those of requests and not of calls.
        """
        self._calls = calls
        self._most_rows = most_rows
        self._rows_of = rows_of
        self._mergeable = mergeable
        # Those that were asked since the loop last came round.
        self._waiting: dict[_Kind, list[_Waiting]] = {}
        # Whose answers cannot be cut by rows.
        self._alone: set[_Form] = set()
        self._under_way: set[asyncio.Task[None]] = set()

    async def infer(self, request: bytes, *, seconds: float | None, traceparent: str) -> bytes:
        """Ask with a ModelInferRequest, answered by a ModelInferResponse. Raises CallFailed."""
        message = _small(request)
        form = None if message is None else _form(message)
        if message is None or form is None or form in self._alone or not self._mergeable(form[0]):
            return await self._calls.infer(request, seconds=seconds, traceparent=traceparent)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        rows = message.inputs[0].shape[0]
        kind = (form, _nearness(seconds))
        waiting = self._waiting.get(kind)
        if waiting is None:
            waiting = self._waiting[kind] = []
            loop.call_soon(self._begin, kind)
        until = None if seconds is None else loop.time() + seconds
        waiting.append(_Waiting(message, request, rows, until, traceparent, answer))
        return await answer

    def _begin(self, kind: _Kind) -> None:
        part: list[_Waiting] = []
        rows, most_rows = 0, min(self._most_rows, self._rows_of(kind[0][0]))
        for one in self._waiting.pop(kind):
            if one.answer.done():
                continue
            if part and rows + one.rows > most_rows:
                self._start(kind[0], part)
                part, rows = [], 0
            part.append(one)
            rows += one.rows
        if part:
            self._start(kind[0], part)

    def _start(self, form: _Form, part: list[_Waiting]) -> None:
        # In no trace: the call belongs to many.
        task = asyncio.create_task(self._ask(form, part), context=contextvars.Context())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

        def left(_: asyncio.Future[bytes]) -> None:
            # Whoever was cancelled waits no more; when nobody does, the call is taken back.
            if all(one.answer.done() for one in part):
                task.cancel()

        for one in part:
            one.answer.add_done_callback(left)

    async def _ask(self, form: _Form, part: Sequence[_Waiting]) -> None:
        if len(part) == 1:
            await self._ask_alone(part[0])
            return
        try:
            answers = await self._ask_together(part)
        except Exception as error:
            if isinstance(error, CallFailed) and error.cause is not Cause.BUSY:
                self._start_each(form, part)
            else:
                for one in part:
                    _fail(one, error)
            return
        if answers is None:
            self._alone.add(form)
            self._start_each(form, part)
            return
        for one, answer in zip(part, answers, strict=True):
            _answer(one, answer)

    async def _ask_together(self, part: Sequence[_Waiting]) -> list[bytes] | None:
        """The answer to each; None where they cannot be told apart."""
        first = min((one.until for one in part if one.until is not None), default=None)
        return _cut(await self._calls.infer(_merged(part), seconds=_left(first), traceparent=""), part)

    def _start_each(self, form: _Form, part: Sequence[_Waiting]) -> None:
        """Ask each by itself, and take each back by itself."""
        for one in part:
            if not one.answer.done():
                self._start(form, [one])

    async def _ask_alone(self, one: _Waiting) -> None:
        seconds = _left(one.until)
        if seconds is not None and seconds <= 0:
            _fail(one, CallFailed("DEADLINE_EXCEEDED", "the deadline passed while others were asked, too"))
            return
        try:
            answer = await self._calls.infer(one.raw, seconds=seconds, traceparent=one.traceparent)
        except Exception as error:
            _fail(one, error)
        else:
            _answer(one, answer)


def _left(until: float | None) -> float | None:
    """Seconds until then; not above 0 when it has passed."""
    return None if until is None else until - asyncio.get_running_loop().time()


def _nearness(seconds: float | None) -> int:
    """The same for deadlines that one call may have the earliest of: it is half as far as any, at least."""
    return _FAR if seconds is None else min(math.frexp(seconds)[1], _FAR)


_FAR: Final = math.frexp(_LONG_SECONDS)[1]


def _answer(one: _Waiting, answer: bytes) -> None:
    if not one.answer.done():
        one.answer.set_result(answer)


def _fail(one: _Waiting, error: Exception) -> None:
    if not one.answer.done():
        one.answer.set_exception(error)


def _small(request: bytes) -> service_pb2.ModelInferRequest | None:
    if len(request) > _SMALL_BYTES:
        return None
    try:
        return service_pb2.ModelInferRequest.FromString(request)
    except DecodeError:
        return None


def _form(message: service_pb2.ModelInferRequest) -> _Form | None:
    """What the rows of a request are like; None for one that is asked alone."""
    if (
        message.model_version
        or message.outputs
        or not message.inputs
        or len(message.raw_input_contents) != len(message.inputs)
        or any(
            name not in _LOGGED or value.WhichOneof("parameter_choice") != "string_param"
            for name, value in message.parameters.items()
        )
    ):
        return None
    shapes: list[_Shape] = []
    rows = 0
    for tensor, raw in zip(message.inputs, message.raw_input_contents, strict=True):
        size = _item_bytes(tensor.datatype)
        shape = tuple(tensor.shape)
        # One with too few bytes and one with as many too much would be taken for two that are right.
        if (
            not size
            or not shape
            or min(shape) < 1
            or size * math.prod(shape) != len(raw)
            or tensor.parameters
        ):
            return None
        if rows and shape[0] != rows:
            return None
        rows = shape[0]
        shapes.append((tensor.name, tensor.datatype, shape[1:]))
    return message.model_name, tuple(shapes)


def _item_bytes(datatype: str) -> int:
    """Bytes of one element; 0 where they differ, or are not known."""
    dtype = None if datatype in ("BYTES", "BF16") else triton_to_np_dtype(datatype)
    return 0 if dtype is None else np.dtype(dtype).itemsize


def _merged(part: Sequence[_Waiting]) -> bytes:
    """One request for the rows of all."""
    first = part[0].message
    merged = service_pb2.ModelInferRequest(model_name=first.model_name)
    rows = sum(one.rows for one in part)
    for index, tensor in enumerate(first.inputs):
        merged.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=[rows, *tensor.shape[1:]])
        merged.raw_input_contents.append(b"".join(one.message.raw_input_contents[index] for one in part))
    own = [[one.message.id, one.rows, json.dumps(_parameters(one))] for one in part]
    merged.parameters[MERGED_PARAMETER].string_param = json.dumps(own)
    serialized: bytes = merged.SerializeToString()
    return serialized


def _parameters(one: _Waiting) -> dict[str, str]:
    """What Triton would have forwarded to the model of one alone."""
    parameters = {name: value.string_param for name, value in one.message.parameters.items()}
    if one.traceparent:
        parameters["traceparent"] = one.traceparent
    return parameters


def _cut(response: bytes, part: Sequence[_Waiting]) -> list[bytes] | None:
    """The answer to each; None where the outputs do not have a row for each row."""
    answer = service_pb2.ModelInferResponse.FromString(response)
    rows = sum(one.rows for one in part)
    bounds = []
    for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        found = _row_bounds(output, raw, rows)
        if found is None:
            return None
        bounds.append(found)
    answers, begin = [], 0
    for one in part:
        end = begin + one.rows
        own = service_pb2.ModelInferResponse(
            model_name=answer.model_name, model_version=answer.model_version, id=one.message.id
        )
        for output, raw, at in zip(answer.outputs, answer.raw_output_contents, bounds, strict=True):
            own.outputs.add(name=output.name, datatype=output.datatype, shape=[one.rows, *output.shape[1:]])
            own.raw_output_contents.append(raw[at[begin] : at[end]])
        answers.append(own.SerializeToString())
        begin = end
    return answers


def _row_bounds(
    output: service_pb2.ModelInferResponse.InferOutputTensor, raw: bytes, rows: int
) -> Sequence[int] | None:
    """Where each row of an output begins in its bytes, and the last one ends; None where rows are others."""
    if not output.shape or output.shape[0] != rows:
        return None
    if output.datatype == "BYTES":
        return _text_bounds(raw, rows, math.prod(output.shape[1:]))
    size, rest = divmod(len(raw), rows)
    return range(0, len(raw) + 1, size) if size and not rest and _item_bytes(output.datatype) else None


def _text_bounds(raw: bytes, rows: int, texts: int) -> Sequence[int] | None:
    """The same of so many texts a row, each after its length."""
    bounds, at = [0], 0
    for _ in range(rows):
        for _ in range(texts):
            at += _LENGTH_BYTES + int.from_bytes(raw[at : at + _LENGTH_BYTES], "little")
        bounds.append(at)
    return bounds if at == len(raw) else None
