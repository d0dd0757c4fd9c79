"""What operators do with a rollout, by RPC and by command, on real parts."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from tests.component.inference.conftest import DEADLINE, Plane
from tests.support.waiting import eventually
from typer.testing import CliRunner, Result

from headrace.api.inference.v1 import inference_pb2 as api
from headrace.cli.main import app
from headrace.errors import FailedPrecondition

HELD = 4 * DEADLINE


async def command(plane: Plane, *words: str) -> Result:
    """Run `headrace` against the plane's service."""
    env = {"HEADRACE_INFERENCE_TARGET": plane.service.target}
    result = await asyncio.to_thread(CliRunner().invoke, app, words, env=env)
    assert not isinstance(result.exception, Exception), result.output
    return result


async def until_half(plane: Plane, name: str) -> None:
    """A rollout of version 2 that stays at half of the traffic for longer than any test."""
    await plane.deploy(name, steps=(50, 100), hold=HELD)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    await plane.promote(name, 2)
    await plane.until(name, lambda d: d.rollout.weight == 50 and d.ready)


async def test_a_paused_rollout_stays_and_a_resumed_one_goes_on(plane: Plane, name: str) -> None:
    await plane.deploy(name, steps=(50, 100), hold=HELD)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    await plane.promote(name, 2)
    await plane.until(name, lambda d: d.rollout.weight == 50)
    paused = await plane.stub.PauseRollout(api.PauseRolloutRequest(deployment=name))
    assert paused.rollout.paused
    # Its hold is over, and still it stays: it is judged, and the verdict is not followed.
    await plane.deploy(name, steps=(50, 100))
    judged = await plane.until(name, lambda d: d.rollout.judgement.verdict == api.ROLLOUT_VERDICT_ADVANCE)
    assert (judged.rollout.weight, judged.rollout.paused) == (50, True)
    resumed = await plane.stub.ResumeRollout(api.ResumeRolloutRequest(deployment=name))
    assert not resumed.rollout.paused
    await plane.until_live(name, 2)


async def test_a_promoted_rollout_has_all_traffic_at_once(plane: Plane, name: str) -> None:
    await until_half(plane, name)
    promoted = await plane.stub.PromoteRollout(api.PromoteRolloutRequest(deployment=name))
    assert promoted.rollout.message == "promoted by an operator"
    assert [(t.version, t.weight) for t in promoted.traffic] == [(2, 100)]
    await plane.until_live(name, 2)


async def test_an_aborted_rollout_gives_its_traffic_back(plane: Plane, name: str) -> None:
    await until_half(plane, name)
    aborted = await plane.stub.AbortRollout(api.AbortRolloutRequest(deployment=name))
    assert aborted.rollout.state == api.ROLLOUT_STATE_ROLLED_BACK
    await plane.until_loaded(name, {1})
    for steer in (
        lambda: plane.stub.AbortRollout(api.AbortRolloutRequest(deployment=name)),
        lambda: plane.stub.PauseRollout(api.PauseRolloutRequest(deployment=name)),
        lambda: plane.stub.ResumeRollout(api.ResumeRolloutRequest(deployment=name)),
        lambda: plane.stub.PromoteRollout(api.PromoteRolloutRequest(deployment=name)),
    ):
        with pytest.raises(FailedPrecondition, match="no rollout in progress") as raised:
            await steer()
        assert raised.value.reason == "NO_ROLLOUT"


async def test_operators_steer_by_command(plane: Plane, name: str) -> None:
    await until_half(plane, name)
    shown = await command(plane, "rollout", "status", name)
    assert shown.stdout.splitlines()[0].startswith("v1 -> v2  PROGRESSING  50%")
    assert "steps [50] 100" in shown.stdout
    for words, state in (
        ("pause", "PROGRESSING, paused"),
        ("resume", "PROGRESSING"),
        ("abort", "ROLLED_BACK"),
    ):
        result = await command(plane, "rollout", words, name)
        assert result.stdout.startswith(f"rollout of {name} is {state}: "), result.output
    refused = await command(plane, "rollout", "promote", name)
    assert refused.exit_code == 6
    assert "has no rollout in progress" in refused.output
    listed = json.loads((await command(plane, "rollout", "history", name, "-o", "json")).stdout)
    assert [(row["to_version"], row["state"], row["message"]) for row in listed] == [
        (2, "ROLLED_BACK", "aborted by an operator"),
        (1, "SUCCEEDED", "version 1 has all traffic"),
    ]


async def test_a_rollout_is_followed_to_its_end_by_command(plane: Plane, name: str) -> None:
    await until_half(plane, name)
    following = asyncio.create_task(command(plane, "rollout", "status", name, "--watch"))
    await plane.stub.PromoteRollout(api.PromoteRolloutRequest(deployment=name))
    lines = (await following).stdout.splitlines()
    assert lines[-1] == "v1 -> v2  SUCCEEDED  100%  promoted by an operator"


async def test_a_terminal_draws_it_as_it_goes_on(plane: Plane, name: str) -> None:
    await until_half(plane, name)
    async with terminal("rollout", "status", name, "--watch", target=plane.service.target) as watching:
        await eventually(watching.drawn, lambda drawn: "PROGRESSING  50%" in drawn)
        result = await command(plane, "rollout", "promote", name)
        assert result.stdout.startswith(f"rollout of {name} is SUCCEEDED: promoted by an operator")
        await asyncio.wait_for(watching.process.wait(), DEADLINE)
        drawn = await watching.drawn()
    half, whole = "█" * 20 + "░" * 20, "█" * 40
    assert drawn.index(half) < drawn.index(whole)
    assert "SUCCEEDED  100%  promoted by an operator" in drawn
    # Drawn over what was there, and not below it.
    assert "\x1b[1A" in drawn


@asynccontextmanager
async def terminal(*words: str, target: str) -> AsyncIterator[Terminal]:
    """A command in a terminal of its own."""
    screen, other_side = pty.openpty()
    os.set_blocking(screen, False)
    environment = {**os.environ, "HEADRACE_INFERENCE_TARGET": target, "TERM": "xterm", "COLUMNS": "120"}
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("headrace"),
        *words,
        stdin=other_side,
        stdout=other_side,
        stderr=other_side,
        env=environment,
    )
    os.close(other_side)
    try:
        yield Terminal(process, screen)
    finally:
        os.close(screen)
        if process.returncode is None:
            process.kill()
            await process.wait()


class Terminal:
    """What a command draws."""

    def __init__(self, process: asyncio.subprocess.Process, screen: int) -> None:
        self.process = process
        self._screen = screen
        self._drawn = b""

    async def drawn(self) -> str:
        """All that was drawn so far."""
        # Reading fails when nothing more is there, and when the other side is closed.
        with suppress(OSError):
            while data := os.read(self._screen, 65536):
                self._drawn += data
        return self._drawn.decode(errors="replace")
