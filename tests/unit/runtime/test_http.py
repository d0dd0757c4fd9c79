from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from headrace.runtime.health import Health
from headrace.runtime.http import serve_http


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with serve_http("127.0.0.1:0", Health()) as bound:
        yield bound


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"200 OK"),
        (b"GET /healthz?verbose HTTP/1.0\r\n\r\n", b"200 OK"),
        (b"GET /readyz HTTP/1.1\r\n\r\n", b"503 Service Unavailable"),
        (b"POST /healthz HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"nonsense\r\n\r\n", b"400 Bad Request"),
    ],
)
async def test_a_request_has_its_answer(port: int, request_head: bytes, status: bytes) -> None:
    answer = await ask(port, request_head)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"Connection: close" in answer


async def test_a_head_request_has_no_body(port: int) -> None:
    answer = await ask(port, b"HEAD /healthz HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n")


async def test_metrics_come_in_the_form_that_is_asked_for(port: int) -> None:
    accept = b"Accept: application/openmetrics-text; version=1.0.0\r\n"
    answer = await ask(port, b"GET /metrics HTTP/1.1\r\n" + accept + b"\r\n")
    assert b"application/openmetrics-text" in answer
    assert answer.rstrip().endswith(b"# EOF")


async def test_an_endless_head_is_cut_off(port: int) -> None:
    assert await ask(port, b"GET /" + b"x" * 100_000) == b""


async def test_a_client_that_says_nothing_holds_nobody_up(port: int) -> None:
    _, silent = await asyncio.open_connection("127.0.0.1", port)
    try:
        assert b"200 OK" in await ask(port, b"GET /healthz HTTP/1.1\r\n\r\n")
    finally:
        silent.close()
        await silent.wait_closed()
