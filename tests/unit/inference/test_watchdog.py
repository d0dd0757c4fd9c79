from __future__ import annotations

import os
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from types import ModuleType

import pytest
from tests.support.triton_code import triton_module

# Longer than anything here takes, and shorter than a test may.
SECONDS = 10.0


@dataclass
class Request:
    """Its caller waits for so many questions more."""

    patience: int = 0
    asked: SimpleQueue[None] = field(default_factory=SimpleQueue)

    def is_cancelled(self) -> bool:
        self.patience -= 1
        self.asked.put(None)
        return self.patience < 0


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = triton_module("watchdog", monkeypatch)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.05)
    return module


def test_a_run_that_nobody_waits_for_any_more_hangs(module: ModuleType) -> None:
    ended: SimpleQueue[str] = SimpleQueue()
    watchdog = module.Watchdog(ended.put)
    requests = [Request(), Request(patience=3)]
    watchdog.begins(requests)
    assert ended.get(timeout=SECONDS) == "it hangs: nobody waits for its answer any more"
    # While one of the two waited nothing was said.
    assert requests[1].patience < 0


def test_a_run_whose_caller_waits_is_left_alone_until_it_is_too_long(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: SimpleQueue[str] = SimpleQueue()
    watchdog = module.Watchdog(ended.put)
    request = Request(patience=1 << 30)
    watchdog.begins([request])
    for _ in range(20):
        request.asked.get(timeout=SECONDS)
    assert ended.empty()
    monkeypatch.setattr(module, "LONGEST_RUN_SECONDS", 0.1)
    assert ended.get(timeout=SECONDS) == "it hangs: it has computed for 0 s"


def test_a_run_that_has_ended_is_not_asked_about(module: ModuleType) -> None:
    ended: SimpleQueue[str] = SimpleQueue()
    watchdog = module.Watchdog(ended.put)
    request = Request()
    watchdog.begins([request])
    watchdog.ends()
    with pytest.raises(Empty):
        ended.get(timeout=0.2)
    assert request.asked.empty()


def test_it_says_when_triton_is_gone(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: SimpleQueue[str] = SimpleQueue()
    module.Watchdog(ended.put)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert ended.get(timeout=SECONDS) == "Triton is gone"
