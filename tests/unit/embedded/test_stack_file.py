"""The stack's file is whole at any moment and nobody else's to read; the lock says who runs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from headrace.client.targets import Targets
from headrace.embedded.options import choose
from headrace.embedded.stack_file import (
    AlreadyRuns,
    PartState,
    PartStatus,
    Stack,
    StackState,
    holder,
    locked,
)
from headrace.errors import FailedPrecondition


def example(data: Path) -> Stack:
    return Stack(
        pid=4711,
        state=StackState.READY,
        options=choose(data),
        parts={"broker": PartStatus(name="broker", state=PartState.READY, pid=12, log=data / "broker.log")},
        targets={"kafka": "127.0.0.1:9092"},
        kafka_idempotence=False,
        logs=data / "logs",
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    stack = example(tmp_path)
    stack.write()
    assert Stack.read(tmp_path) == stack


def test_clients_find_their_targets_in_it(tmp_path: Path) -> None:
    example(tmp_path).write()
    targets = Targets.discover(tmp_path, {})
    assert targets.address("kafka") == "127.0.0.1:9092"
    assert targets.kafka_idempotence is False
    assert targets.logs == tmp_path / "logs"


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    example(tmp_path).write()
    assert stat.S_IMODE((tmp_path / "stack.json").stat().st_mode) == 0o600


def test_no_file_is_no_stack(tmp_path: Path) -> None:
    assert Stack.read(tmp_path) is None
    assert Stack.read(tmp_path / "nowhere") is None


def test_a_broken_file_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text("{}")
    with pytest.raises(FailedPrecondition, match="headrace down"):
        Stack.read(tmp_path)


def test_one_process_holds_a_folder(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with locked(tmp_path):
        assert holder(tmp_path) == os.getpid()
        with pytest.raises(AlreadyRuns), locked(tmp_path):
            pass
        assert holder(tmp_path) == os.getpid()
    assert holder(tmp_path) is None
