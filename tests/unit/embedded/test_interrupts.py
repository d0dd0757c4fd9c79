"""Ctrl-C while a stack is being started."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from headrace.embedded import commands
from headrace.embedded.commands import uninterrupted


def test_ctrl_c_waits_for_the_end_of_the_block() -> None:
    ended = False
    with pytest.raises(KeyboardInterrupt), uninterrupted():  # noqa: PT012 - what comes after it is the point
        os.kill(os.getpid(), signal.SIGINT)
        ended = True
    assert ended
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_stack_that_was_just_started_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[int] = []

    def spawn(*_: object, **__: object) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return 4711

    monkeypatch.setattr(commands, "spawn", spawn)
    monkeypatch.setattr(commands, "_stop", lambda _data, pid: stopped.append(pid))
    with pytest.raises(KeyboardInterrupt):
        commands.up(tmp_path)
    assert stopped == [4711]
