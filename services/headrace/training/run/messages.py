"""What a run tells its agent while it works: one JSON object a line, on a pipe."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True)


class Started(_Message):
    """Training begins, after `resumed_epoch` epochs that an earlier run has done."""

    kind: Literal["started"] = "started"
    epochs: int
    resumed_epoch: int


class Progressed(_Message):
    """`epoch` epochs are done; `loss` is the last one's training loss."""

    kind: Literal["progressed"] = "progressed"
    epoch: int
    epochs: int
    loss: float
    remaining_seconds: float


class Failed(_Message):
    """The run ends with an error that it can name."""

    kind: Literal["failed"] = "failed"
    reason: str
    message: str


class Finished(_Message):
    """The results are in the folder."""

    kind: Literal["finished"] = "finished"


Message = Annotated[Started | Progressed | Failed | Finished, Field(discriminator="kind")]

_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)


def parse(line: bytes) -> Message:
    """Read one line. Raises ValueError."""
    return _MESSAGE.validate_json(line)


class Pipe:
    """Writes messages to a file descriptor; None: nobody listens, and they are dropped."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def send(self, message: Message) -> None:
        """Write one line. A line is shorter than PIPE_BUF, so it arrives whole."""
        if self._descriptor is not None:
            os.write(self._descriptor, message.model_dump_json().encode() + b"\n")
