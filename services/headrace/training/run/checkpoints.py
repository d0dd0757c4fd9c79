"""Checkpoints in the object store: first the state, then the pointer to it."""

from __future__ import annotations

import hashlib
import io
import logging
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from headrace.errors import NotFound
from headrace.objects.store import ObjectStore
from headrace.runtime.faults import fault_point

logger = logging.getLogger(__name__)

POINTER = "latest.json"


class Pointer(BaseModel):
    """`latest.json`: which state is complete, and what it is a state of."""

    model_config = ConfigDict(frozen=True)

    path: str
    epoch: int
    batches: int = 0
    sha256: str
    fingerprint: str


@dataclass(frozen=True)
class Checkpoint:
    """A state to resume from: after `epoch` epochs and `batches` batches of the next one."""

    epoch: int
    state: dict[str, Any]
    batches: int = 0


class Checkpoints:
    """A job's checkpoints, of which the newest complete one counts.

    A run that dies while it saves leaves the pointer where it was. Each attempt writes objects of its
    own, so that a run that lives on unnoticed on a lost node cannot damage its successor's.
    """

    def __init__(self, store: ObjectStore, job: str, attempt: int, fingerprint: str) -> None:
        self._store = store
        self._folder = f"checkpoints/{job}"
        self._attempt = attempt
        self._fingerprint = fingerprint
        self._saved: str | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Make a state the one to resume from."""
        buffer = io.BytesIO()
        torch.save(checkpoint.state, buffer)
        data = buffer.getvalue()
        batches = f"-{checkpoint.batches:08d}" if checkpoint.batches else ""
        path = f"{self._folder}/{self._attempt}-{checkpoint.epoch:08d}{batches}.pt"
        self._store.write_bytes(path, data)
        pointer = Pointer(
            path=path,
            epoch=checkpoint.epoch,
            batches=checkpoint.batches,
            sha256=hashlib.sha256(data).hexdigest(),
            fingerprint=self._fingerprint,
        )
        self._store.write_bytes(f"{self._folder}/{POINTER}", pointer.model_dump_json().encode())
        if self._saved not in (None, path):
            assert self._saved is not None
            self._store.delete_object(self._saved)
        self._saved = path
        fault_point("training.after-checkpoint")

    def load(self) -> Checkpoint | None:
        """Return the state to resume from; None where there is none that suits this run."""
        try:
            pointer = Pointer.model_validate_json(self._store.read_bytes(f"{self._folder}/{POINTER}"))
            if pointer.fingerprint != self._fingerprint:
                logger.warning("the checkpoint is of another specification: starting anew")
                return None
            data = self._store.read_bytes(pointer.path)
        except NotFound:
            return None
        if hashlib.sha256(data).hexdigest() != pointer.sha256:
            logger.warning("the checkpoint %s is damaged: starting anew", pointer.path)
            return None
        self._saved = pointer.path
        # weights_only: a checkpoint holds tensors and plain values, and never code. To the processor: the
        # next attempt's node may have no GPU, and what takes a state over copies it to where it is used.
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return Checkpoint(pointer.epoch, state, pointer.batches)
