"""What goes wrong on the port that Envoy asks, in words for whoever calls a model.

Envoy passes on what it is answered here, so nothing of the service's inside may stand in it: bytes that are
no message are their caller's error, and a failure is told in fixed words, and by the log.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NoReturn

import grpc

from headrace.errors import HeadraceError
from headrace.rpc.errors import code_of
from headrace.rpc.interception import Context, Details, Handler, write_all
from headrace.rpc.validation import read_message

logger = logging.getLogger(__name__)

CANNOT_ANSWER: Final = "the inference service cannot answer now; try again later"


class PlainErrors(grpc.aio.ServerInterceptor):
    """Reads each request within its call, and ends calls with plain errors.

    A handler without a deserializer takes bytes, and reads them itself.
    """

    async def intercept_service(
        self, continuation: Callable[[Details], Awaitable[Handler | None]], details: Details
    ) -> Handler | None:
        """Return the method's handler, wrapped; there are those of one message, and those of streams."""
        handler = await continuation(details)
        if handler is None:
            return None
        return (_streaming if handler.response_streaming else _single)(handler, details.method)


def _single(handler: Handler, method: str) -> Handler:
    behaviour: Any = handler.unary_unary
    parse = _parser(handler)

    async def answer(data: bytes, context: Context) -> Any:
        try:
            return await behaviour(parse(data), context)
        except Exception as error:
            await _fail(error, method, context)

    return grpc.unary_unary_rpc_method_handler(answer, None, handler.response_serializer)


def _streaming(handler: Handler, method: str) -> Handler:
    behaviour: Any = handler.stream_stream
    parse = _parser(handler)

    async def messages(stream: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for data in stream:
            yield parse(data)

    async def answer(stream: AsyncIterator[bytes], context: Context) -> None:
        try:
            await write_all(behaviour(messages(stream), context), context)
        except Exception as error:
            await _fail(error, method, context)

    return grpc.stream_stream_rpc_method_handler(answer, None, handler.response_serializer)


def _parser(handler: Handler) -> Callable[[bytes], Any]:
    parse = handler.request_deserializer
    return bytes if parse is None else lambda data: read_message(parse, data, "message of this method")


async def _fail(error: Exception, method: str, context: Context) -> NoReturn:
    """End the call with what the error means to a caller; always raises."""
    if isinstance(error, grpc.aio.AbortError | NotImplementedError):
        # Its status is set.
        raise error
    code, words = grpc.StatusCode.UNAVAILABLE, CANNOT_ANSWER
    if isinstance(error, HeadraceError):
        code, words = code_of(error), error.message
    else:
        logger.error("%s failed", method, exc_info=error)
    await context.abort(code, words)
    raise AssertionError("abort always raises")
