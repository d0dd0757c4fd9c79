"""Why a run cannot end well, where its user can do something about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from headrace.errors import HeadraceError, NotFound, Unavailable


class RunError(Exception):
    """The run fails with a stable reason and a sentence that says what to do."""

    reason: ClassVar[str] = "RUN_FAILED"


class UnusableDataset(RunError):  # noqa: N818 - what it is
    """The rows are not what the recipe can learn from."""

    reason = "UNUSABLE_DATASET"


class TableNotFound(RunError):  # noqa: N818
    """There is no table, or not at that version."""

    reason = "TABLE_NOT_FOUND"


class Diverged(RunError):  # noqa: N818
    """The loss is no longer a number."""

    reason = "DIVERGED"


class ModelTooLarge(RunError):  # noqa: N818
    """The weights do not fit into an ONNX file."""

    reason = "MODEL_TOO_LARGE"


class OutOfMemory(RunError):  # noqa: N818
    """An allocation failed."""

    reason = "OUT_OF_MEMORY"


class Interrupted(Exception):  # noqa: N818
    """The run was told to stop, and has saved a checkpoint."""


@contextmanager
def explained() -> Iterator[None]:
    """Raise what reading raises as the reason of a run's failure."""
    try:
        yield
    except NotFound as error:
        raise TableNotFound(error.message) from error
    except Unavailable as error:
        raise RunError(error.message) from error
    except HeadraceError as error:
        raise UnusableDataset(error.message) from error
