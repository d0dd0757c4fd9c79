"""`stack.json`: what a running stack says about itself, and the lock that says whether it runs."""

from __future__ import annotations

import enum
import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from headrace.embedded.options import StackOptions
from headrace.errors import FailedPrecondition

STACK_FILE: Final = "stack.json"
LOCK_FILE: Final = "lock"
# What a stack that did not start leaves for a person to read.
FAILURE_FILE: Final = "failure.txt"

# How the supervisor ends: a part did not start, or the folder is another stack's.
EXIT_FAILED: Final = 1
EXIT_IN_USE: Final = 3


class PartState(enum.StrEnum):
    """Where a part is in its life."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    UNREADY = "unready"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"


class StackState(enum.StrEnum):
    """Where the whole stack is."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


class PartStatus(BaseModel):
    """One part, as the stack's file and `headrace status` show it."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: PartState
    pid: int | None = None
    address: str = ""
    log: Path | None = None
    # Why it is not ready, or what happened to it last.
    message: str = ""
    restarts: int = 0
    # From the stack's start to this state.
    seconds: float = 0.0


class Stack(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True)

    pid: int
    state: StackState
    options: StackOptions
    parts: Mapping[str, PartStatus]
    # Addresses by name, of the parts that have come up: where clients find them.
    targets: Mapping[str, str]
    # Whether the broker has idempotent producers; the embedded one has not.
    kafka_idempotence: bool
    logs: Path

    def write(self) -> None:
        """Replace the file in one step. Only its owner can read it: a DSN may hold a password."""
        file = self.options.data / STACK_FILE
        fresh = file.with_suffix(".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as content:
            content.write(self.model_dump_json(indent=2) + "\n")
        fresh.replace(file)

    @staticmethod
    def read(data: Path) -> Stack | None:
        """The file in a data folder, if there is one. Raises FailedPrecondition/BROKEN_STACK_FILE."""
        file = data / STACK_FILE
        try:
            return Stack.model_validate_json(file.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValidationError, OSError) as error:
            raise FailedPrecondition(
                "BROKEN_STACK_FILE", f"{file} is not a stack's file; `headrace down` removes it"
            ) from error


class AlreadyRuns(Exception):  # noqa: N818 - what it is
    """Another process holds the folder's lock."""


@contextmanager
def locked(data: Path) -> Iterator[None]:
    """Hold a data folder's lock. Raises AlreadyRuns. A dead process holds none."""
    descriptor = os.open(data / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRuns(str(data)) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def holder(data: Path) -> int | None:
    """The process that holds a data folder's lock; None where none does."""
    try:
        descriptor = os.open(data / LOCK_FILE, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        # A holder that has not yet written its number: its predecessor's is there, or none.
        text = os.pread(descriptor, 20, 0)
        return int(text) if text.isdigit() else None
    else:
        return None
    finally:
        os.close(descriptor)
