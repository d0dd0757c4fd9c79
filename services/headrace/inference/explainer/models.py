"""What the process that explains knows of a model, whatever its format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from headrace.inference.domain.attribution import Numbers, Texts


class ModelFailed(Exception):  # noqa: N818 - what it is
    """The model does not load, does not answer, or answers what is no number."""


class ModelNotReady(Exception):  # noqa: N818
    """The model cannot be loaded here; the message says why, and nothing of a row."""


class Model(Protocol):
    """A loaded model.

    `continuous`: whether the explained output is known to move without jumps. `differentiable`: whether its
    gradients may be asked for.
    """

    @property
    def continuous(self) -> bool:
        """As above."""

    @property
    def differentiable(self) -> bool:
        """As above."""

    def answer(self, numbers: Numbers, texts: Texts) -> Numbers:
        """What it answers to rows: [rows, values]. Raises ModelFailed, MemoryError."""

    def gradients(self, numbers: Numbers, place: int) -> Numbers:
        """How each row's value at a place moves with its numbers: [rows, columns].

        Raises NoGradients, MemoryError.
        """

    def close(self) -> None:
        """End what it has started."""


@contextmanager
def of_the_model() -> Iterator[None]:
    """Turn what the runtime raises, which has no common type, into ModelFailed or MemoryError."""
    try:
        yield
    except (MemoryError, ModelFailed):
        raise
    except Exception as error:
        raise MemoryError if "alloc" in str(error) else ModelFailed from None
