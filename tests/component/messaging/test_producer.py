"""A producer whose broker goes away neither hangs at its end nor leaves anything open."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest

from headrace.embedded.parts.process import free_port
from headrace.embedded.parts.tansu import Tansu
from headrace.messaging.events import Event
from headrace.messaging.producer import Producer

DEADLINE = 30.0


@pytest.mark.parametrize("paused", [False, True])
async def test_the_end_does_not_wait_for_a_broker_that_stays_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paused: bool
) -> None:
    monkeypatch.setattr("headrace.messaging.producer.STOP_SECONDS", 0.2)
    event = Event("1", "tests", "t", "s", datetime(2026, 1, 1, tzinfo=UTC), b"")
    broker = Tansu(tmp_path / "tansu", tmp_path / "logs", free_port())
    await broker.start()
    producer = Producer(broker.bootstrap, client_id="tests", idempotence=False)
    try:
        await producer.__aenter__()
        await producer.publish("tests.away.v1", "key", event)
        assert broker.pid is not None
        if paused:
            os.kill(broker.pid, signal.SIGSTOP)
        else:
            await broker.stop()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await producer.publish("tests.away.v1", "key", event)
        async with asyncio.timeout(DEADLINE):
            await producer.__aexit__(None, None, None)
    finally:
        if broker.pid is not None:
            os.kill(broker.pid, signal.SIGCONT)
        await broker.stop()
