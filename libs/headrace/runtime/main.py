"""`run`: from a service's settings to its exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Protocol

from headrace import telemetry
from headrace.runtime.http import serve_http
from headrace.runtime.memory import NEW_OBJECTS, settle_memory
from headrace.runtime.runner import Runner
from headrace.runtime.settings import PlatformSettings
from headrace.telemetry import logs

logger = logging.getLogger(__name__)

# A service waits for this until its composition root returned.
STARTUP_COMPONENT = "startup"
# Beyond the drain: for the event loop's own end and the last spans.
OVERTIME_SECONDS = 5.0


class ServiceSettings(Protocol):
    """What `run` needs of a service's own settings."""

    @property
    def http_address(self) -> str:
        """host:port of /metrics, /healthz and /readyz."""


def run(
    name: str,
    settings: ServiceSettings,
    platform: PlatformSettings,
    build: Callable[[Runner], Awaitable[None]],
    *,
    new_objects: int = NEW_OBJECTS,
) -> None:
    """Run the service `name` until it is told to stop; never returns, exits.

    `build` opens what the service needs on the runner and starts its tasks. The service is ready when it
    returns and every component that it declared is ready. `new_objects`: see `settle_memory`.

    Signals: the first SIGTERM or SIGINT drains within `platform.drain_seconds`, the second one exits at
    once. Exit code 0 after a clean stop, 1 after a failure, 128 + signal after a forced exit.
    """
    settle_memory(new_objects)
    logs.setup(platform.log_level, platform.log_format)
    tracing = telemetry.setup(name, f"{socket.gethostname()}-{os.getpid()}", platform.otlp_endpoint)
    try:
        code = asyncio.run(_serve(name, settings, platform.drain_seconds, build))
    finally:
        tracing.shutdown()
    sys.exit(code)


async def _serve(
    name: str,
    settings: ServiceSettings,
    drain_seconds: float,
    build: Callable[[Runner], Awaitable[None]],
) -> int:
    runner = Runner()
    runner.health.set_ready(STARTUP_COMPONENT, ready=False, message="starting")
    _handle_signals(runner)
    started = await _start(name, settings, build, runner)
    if started:
        runner.health.set_ready(STARTUP_COMPONENT, ready=True)
        logger.info("%s is up", name)
        await runner.stopping.wait()
    interrupted = runner.stopping.is_set() and runner.failure is None
    logger.info("%s is stopping", name)
    _exit_after(drain_seconds + OVERTIME_SECONDS)
    await runner.close(drain_seconds)
    logger.info("%s has stopped", name)
    return 0 if runner.failure is None and (started or interrupted) else 1


async def _start(
    name: str,
    settings: ServiceSettings,
    build: Callable[[Runner], Awaitable[None]],
    runner: Runner,
) -> bool:
    """Build the service in this very task, so that contexts are left by the task that entered them."""
    main_task = asyncio.current_task()
    assert main_task is not None
    interrupter = asyncio.create_task(_cancel_when_stopping(runner, main_task), name="interrupt start")
    try:
        port = await runner.enter(serve_http(settings.http_address, runner.health))
        logger.info("%s answers /healthz, /readyz and /metrics on port %d", name, port)
        await build(runner)
    except asyncio.CancelledError:
        if not runner.stopping.is_set():
            raise
        main_task.uncancel()
        logger.info("%s was stopped while it started", name)
        return False
    except Exception:
        logger.exception("%s did not start", name)
        return False
    finally:
        interrupter.cancel()
    return True


async def _cancel_when_stopping(runner: Runner, task: asyncio.Task[object]) -> None:
    await runner.stopping.wait()
    task.cancel()


def _handle_signals(runner: Runner) -> None:
    def stop(number: signal.Signals) -> None:
        if runner.stopping.is_set():
            logger.warning("second %s: exiting at once", number.name)
            os._exit(128 + number)
        logger.info("%s: draining", number.name)
        runner.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)


def _exit_after(seconds: float) -> None:
    """Exit with 1 unless the process has ended by itself: a stuck thread or task cannot keep it alive."""

    def give_up() -> None:
        logger.error("still not stopped after %.1f s: exiting", seconds)
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
