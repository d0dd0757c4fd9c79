"""How Triton runs a deployment's versions: how requests become batches, how many run at once, and the log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from headrace.errors import FieldViolation, invalid_fields

DEFAULT_BATCH_SIZE: Final = 64
MAX_BATCH_SIZE: Final = 4096
# Of all inputs of a batch, which is copied a few times: 64 MiB of FP32. Of large images fewer rows fit.
MAX_BATCH_VALUES: Final = 1 << 24
# A request that waits longer for others is not served, it is stored.
MAX_QUEUE_DELAY: Final = timedelta(seconds=10)
# Each is a process with the model in it.
MAX_INSTANCES: Final = 64


@dataclass(frozen=True, slots=True)
class LogRules:
    """Which requests are logged, and where that goes beside the topic.

    `share`: of the requests, decided by a hash of each one's id. `dataset`: whose rows they become; "": none.
    """

    share: float = 1.0
    dataset: str = ""

    def text(self) -> str:
        """In a few words, the same for equal rules."""
        return f"{self.share!r} to {self.dataset}" if self.dataset else repr(self.share)


LOG_ALL: Final = LogRules()
"""Every request, and no dataset: what holds where nothing is said."""


@dataclass(frozen=True, slots=True)
class Serving:
    """Settings of a deployment, the same for all of its versions.

    `max_batch_size`: rows that run at once, and so the most that one request may have. `max_queue_delay`: how
    long a request waits at most for others to share its batch; without it a batch is what has come while the
    one before ran. `preferred`: sizes that run without waiting any longer. `instances`: processes of each
    version. `log`: what each of them tells of the requests that it answered.
    """

    max_batch_size: int = DEFAULT_BATCH_SIZE
    max_queue_delay: timedelta = timedelta()
    preferred: tuple[int, ...] = ()
    instances: int = 1
    log: LogRules = LOG_ALL

    @property
    def queue_microseconds(self) -> int:
        """`max_queue_delay` in Triton's unit."""
        return self.max_queue_delay // timedelta(microseconds=1)

    def text(self) -> str:
        """On one line, the same for equal settings."""
        preferred = f", preferred {','.join(map(str, self.preferred))}" if self.preferred else ""
        # Nothing where nothing was said: so it was before there was such a setting, and stays loaded.
        log = "" if self.log == LOG_ALL else f", log {self.log.text()}"
        return (
            f"batches up to {self.max_batch_size}, delay {self.queue_microseconds / 1000:g} ms{preferred}, "
            f"{self.instances} {'instance' if self.instances == 1 else 'instances'}{log}"
        )


DEFAULTS: Final = Serving()


@dataclass(frozen=True, slots=True)
class ServingChange:
    """What an operator says of a deployment's settings; None leaves them as they are.

    Batches are changed whole: of `batching` everything counts but its instances and its log.
    """

    batching: Serving | None = None
    instances: int | None = None
    log: LogRules | None = None

    def of(self, serving: Serving) -> Serving:
        """The settings, so changed."""
        batching = serving if self.batching is None else self.batching
        return replace(
            batching,
            instances=self.instances or serving.instances,
            log=serving.log if self.log is None else self.log,
        )


UNCHANGED: Final = ServingChange()


def largest_batch(row_values: int) -> int:
    """Rows of so many values that a batch may have, whatever a deployment's settings say."""
    return max(1, min(MAX_BATCH_SIZE, MAX_BATCH_VALUES // max(1, row_values)))


def checked(serving: Serving) -> Serving:
    """The settings, if Triton can take them. Raises InvalidArgument/INVALID_SERVING by fields."""
    if violations := list(_violations(serving)):
        raise invalid_fields("INVALID_SERVING", violations)
    return serving


def _violations(serving: Serving) -> Iterator[FieldViolation]:
    if not 1 <= serving.max_batch_size <= MAX_BATCH_SIZE:
        yield FieldViolation("batching.max_batch_size", f"must be from 1 to {MAX_BATCH_SIZE} rows")
    if not timedelta() <= serving.max_queue_delay <= MAX_QUEUE_DELAY:
        seconds = MAX_QUEUE_DELAY.total_seconds()
        yield FieldViolation("batching.max_queue_delay", f"must be from 0 to {seconds:g} seconds")
    sizes = serving.preferred
    if list(sizes) != sorted(set(sizes)) or any(not 1 <= size <= serving.max_batch_size for size in sizes):
        yield FieldViolation(
            "batching.preferred",
            f"must be rising sizes from 1 to max_batch_size, which is {serving.max_batch_size}",
        )
    if not 1 <= serving.instances <= MAX_INSTANCES:
        yield FieldViolation("instances", f"must be from 1 to {MAX_INSTANCES}")
    if not 0.0 <= serving.log.share <= 1.0:
        yield FieldViolation("log.share", "must be from 0 to 1")
