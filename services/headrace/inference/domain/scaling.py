"""How many servers have a deployment loaded, and how many processes serve it there (docs/adr/0046).

Pure decisions on what was measured. Going up is quick and needs requests that wait; coming down is slow and
needs that fewer would have done for a while: between the two nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from headrace.errors import FieldViolation, invalid_fields
from headrace.inference.domain.serving import MAX_INSTANCES

MAX_REPLICAS: Final = 64
DEFAULT_IDLE: Final = timedelta(minutes=5)
DEFAULT_QUEUE: Final = timedelta(milliseconds=20)
# What is loaded for one request must not be unloaded while it is answered.
MIN_IDLE: Final = timedelta(seconds=5)
MAX_IDLE: Final = timedelta(days=30)

# What is looked at before there is one more, and how long the next step waits to see what that one did.
UP_SECONDS: Final = 5.0
AFTER_UP_SECONDS: Final = 15.0
# Before there is one less.
DOWN_SECONDS: Final = 60.0
# One less must not be busier than this, on average.
DOWN_BUSY: Final = 0.6


@dataclass(frozen=True, slots=True)
class Scaling:
    """An operator's bounds.

    `min_replicas`, `max_replicas`: servers that have it loaded; where there are fewer, all of them.
    `max_instances`: processes of each version on a server; 0: as its settings say. `idle`: with no replica as
    the minimum, how long nobody has asked before it is unloaded. `queue`: how long requests may wait for a
    process on average.
    """

    min_replicas: int = 1
    max_replicas: int = MAX_REPLICAS
    max_instances: int = 0
    idle: timedelta = DEFAULT_IDLE
    queue: timedelta = DEFAULT_QUEUE


EVERYWHERE: Final = Scaling(min_replicas=MAX_REPLICAS)
"""Loaded on every server, as a deployment is of which nothing is said."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Where a deployment is, and processes of each version; 0: as its settings say.

    It is on so many servers from the `first` on, going round.
    """

    replicas: int = MAX_REPLICAS
    first: int = 0
    instances: int = 0

    def servers(self, count: int) -> frozenset[int]:
        """Which of so many servers."""
        return frozenset((self.first + step) % count for step in range(min(self.replicas, count)))


ALL_SERVERS: Final = Scale()
NOWHERE: Final = Scale(0)


@dataclass(frozen=True, slots=True)
class Sample:
    """What a deployment had done until some moment, on all servers: requests, and seconds.

    `time`: seconds of any clock. `queued`: requests' waiting for a process, added up. `busy`: of processes at
    work on batches, added up.
    """

    time: float
    requests: int = 0
    queued: float = 0.0
    busy: float = 0.0


def checked(scaling: Scaling) -> Scaling:
    """The bounds, if they can be kept. Raises InvalidArgument/INVALID_SCALING by fields."""
    if violations := list(_violations(scaling)):
        raise invalid_fields("INVALID_SCALING", violations)
    return scaling


def _violations(scaling: Scaling) -> Iterator[FieldViolation]:
    if not 0 <= scaling.min_replicas <= MAX_REPLICAS:
        yield FieldViolation("scaling.min_replicas", f"must be from 0 to {MAX_REPLICAS}")
    if not max(1, scaling.min_replicas) <= scaling.max_replicas <= MAX_REPLICAS:
        lowest = max(1, scaling.min_replicas)
        yield FieldViolation("scaling.max_replicas", f"must be from {lowest} to {MAX_REPLICAS}")
    if not 0 <= scaling.max_instances <= MAX_INSTANCES:
        yield FieldViolation("scaling.max_instances", f"must be from 0 to {MAX_INSTANCES}")
    if not MIN_IDLE <= scaling.idle <= MAX_IDLE:
        yield FieldViolation("scaling.idle", "must be from 5 seconds to 30 days")
    if not timedelta(milliseconds=1) <= scaling.queue <= timedelta(seconds=60):
        yield FieldViolation("scaling.queue", "must be from 1 millisecond to 60 seconds")


def next_scale(
    scaling: Scaling,
    scale: Scale,
    *,
    base_instances: int,
    servers: int,
    samples: Sequence[Sample],
    steady_since: float,
    asked: float,
    demanded: bool = False,
) -> Scale:
    """The scale that a deployment should have now; `first` is left to who places it.

    `base_instances`: of its settings. `servers`: how many answer. `samples`: rising by time, the last one of
    now; those that are older than `DOWN_SECONDS` do not matter. `steady_since`: when the scale changed last,
    and `asked`: when somebody asked last, both by the samples' clock. `demanded`: somebody waits for it.
    """
    now = samples[-1].time
    lowest, highest = min(scaling.min_replicas, servers), min(scaling.max_replicas, servers)
    within = replace(
        scale,
        replicas=max(min(scale.replicas, highest), lowest),
        instances=_instances(scale, base_instances, scaling),
    )
    if scale.replicas == 0:
        return replace(within, replicas=lowest or int(demanded))
    if lowest == 0 and now - max(asked, steady_since) >= scaling.idle.total_seconds():
        return replace(within, replicas=0)
    if within != scale:
        return within
    floor = base_instances if scaling.max_instances else within.instances
    if _waits(samples, scaling, steady_since):
        return _more(within, scaling, highest)
    if _has_room(samples, scaling, within, steady_since, floor, max(1, lowest)):
        return _less(within, floor)
    return within


def _instances(scale: Scale, base: int, scaling: Scaling) -> int:
    if not scaling.max_instances:
        return 0
    return max(min(scale.instances or base, scaling.max_instances), base)


def _more(scale: Scale, scaling: Scaling, highest: int) -> Scale:
    # A process more on a server that has the model's file is the cheaper one.
    if scale.instances and scale.instances < scaling.max_instances:
        return replace(scale, instances=scale.instances + 1)
    return replace(scale, replicas=min(scale.replicas + 1, highest))


def _less(scale: Scale, floor: int) -> Scale:
    if scale.instances and scale.instances > floor:
        return replace(scale, instances=scale.instances - 1)
    return replace(scale, replicas=scale.replicas - 1)


def _waits(samples: Sequence[Sample], scaling: Scaling, steady_since: float) -> bool:
    """Whether requests have waited for too long since there was last one more."""
    now = samples[-1]
    if now.time - steady_since < AFTER_UP_SECONDS:
        return False
    lately = _between(_at(samples, now.time - UP_SECONDS), now)
    return lately.time >= UP_SECONDS and _waited(lately) > scaling.queue.total_seconds()


def _has_room(
    samples: Sequence[Sample], scaling: Scaling, scale: Scale, steady_since: float, floor: int, lowest: int
) -> bool:
    """Whether one less would have done for as long as is looked at."""
    now = samples[-1]
    if now.time - steady_since < DOWN_SECONDS:
        return False
    begin = _at(samples, now.time - DOWN_SECONDS)
    left = _less(scale, floor)
    if now.time - begin.time < DOWN_SECONDS or left.replicas < lowest:
        return False
    now_have, would_have = (one.replicas * max(1, one.instances or floor) for one in (scale, left))
    return all(
        part.busy / part.time / would_have < DOWN_BUSY
        and _waited(part) * _growth(part.busy / part.time, now_have, would_have)
        < scaling.queue.total_seconds() / 2
        for part in _parts(samples, begin)
    )


def _growth(busy: float, now: int, then: int) -> float:
    """By how much longer requests wait for fewer processes, none of which is always busy.

    A queue's mean wait goes by rho / (1 - rho), rho being the share of time that its process works.
    """
    if not busy:
        return 1.0
    rho_now, rho_then = busy / now, busy / then
    return (rho_then / (1 - rho_then)) / (rho_now / (1 - rho_now))


def _parts(samples: Sequence[Sample], begin: Sample) -> Iterator[Sample]:
    """What was done in each `UP_SECONDS` since then; its `time` is how long it took."""
    for sample in samples:
        if sample.time - begin.time >= UP_SECONDS:
            yield _between(begin, sample)
            begin = sample


def _between(before: Sample, after: Sample) -> Sample:
    return Sample(
        after.time - before.time,
        after.requests - before.requests,
        after.queued - before.queued,
        after.busy - before.busy,
    )


def _waited(done: Sample) -> float:
    """Seconds that a request waited on average."""
    return done.queued / done.requests if done.requests else 0.0


def _at(samples: Sequence[Sample], time: float) -> Sample:
    """The newest sample of that moment or before, or the oldest one."""
    return next((sample for sample in reversed(samples) if sample.time <= time), samples[0])
