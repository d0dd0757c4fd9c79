"""Which setting of a deployment answers most requests within a target: what to measure, and what follows.

A coordinate search. From the current setting it moves along one coordinate at a time (instances, batch size,
delay) and keeps what is better, until a round changes nothing. A setting is judged at the number of requests
under way that gives most answers and keeps the target: looked for from where the best setting so far had it,
by factors of two. More of them never give fewer answers, but for noise; so a setting that misses the target,
and answers fewer than the best one even then, is given up at once. At the end those that are close are
measured again in turns, and for each the measurement in the middle decides.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

from headrace.inference.domain.serving import Serving

FIRST_IN_FLIGHT: Final = 4
MAX_IN_FLIGHT: Final = 1024
# Requests beyond those that give less than this only wait longer.
LEAST_GAIN: Final = 1.05
# Two measurements of one setting differ by so much.
NOISE: Final = 0.05
# What is so near to the best is measured again.
CLOSE: Final = 0.10
FINALISTS: Final = 3
REPEATS: Final = 2
ROUNDS: Final = 3
BATCH_SIZES: Final = (1, 4, 16, 64, 256)
# Of the target: who waits longer than a quarter of it for others has little left for the answer.
DELAY_SHARES: Final = (0.0, 0.05, 0.125, 0.25)


@dataclass(frozen=True, slots=True)
class Goal:
    """`seconds` within which `share` of the requests is answered; `rate` a second, 0: as many as possible."""

    seconds: float
    share: float = 0.99
    rate: float = 0.0

    @property
    def name(self) -> str:
        """As operators say it: p99."""
        return f"p{100 * self.share:g}"


@dataclass(frozen=True, slots=True)
class Space:
    """What is tried: batches from `least_batch` to `most_batch` rows, up to so many instances."""

    least_batch: int
    most_batch: int
    most_instances: int


@dataclass(frozen=True, slots=True)
class Trial:
    """Measure this setting with so many requests under way; 0: they come at the goal's rate."""

    serving: Serving
    in_flight: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a trial gave: answers a second; seconds within which half, and the goal's share, were answered."""

    trial: Trial
    throughput: float
    p50: float
    latency: float
    answered: int
    failed: int = 0
    stable: bool = True

    @property
    def serving(self) -> Serving:
        """The setting that was measured."""
        return self.trial.serving

    def keeps(self, goal: Goal) -> bool:
        """The latency is within the target, no request failed, and a rate that is asked for was kept."""
        return (
            self.answered > 0
            and not self.failed
            and self.latency <= goal.seconds
            and self.throughput >= goal.rate * (1 - NOISE)
        )


@dataclass(frozen=True, slots=True)
class Proposal:
    """The best setting's measurement, the current one's if there is any, and why, for people."""

    measurement: Measurement
    current: Measurement | None
    keeps_target: bool
    changes: bool
    reason: str


@dataclass
class Search:
    """`trials` says what to measure; `proposal` what follows from what has been, at any moment."""

    goal: Goal
    space: Space
    current: Serving
    measurements: list[Measurement] = field(default_factory=list)

    def trials(self) -> Generator[Trial, Measurement, None]:
        """Each is answered by its measurement; ends when there is nothing more to find out."""
        best = yield from self._best_load(self.current, None)
        tried = {self.current}
        for round_number in range(ROUNDS):
            before = best.serving
            for coordinate in (self._instances, self._batch_sizes, self._delays):
                for serving in coordinate(replace(best.serving, preferred=()), fine=round_number > 0):
                    if serving not in tried:
                        tried.add(serving)
                        found = yield from self._best_load(serving, best)
                        best = max(best, found, key=self._worth)
            # The first round tries what is far apart, those after it the best one's neighbours.
            if round_number and best.serving == before:
                break
        for _ in range(REPEATS):
            for finalist in self._finalists():
                yield from self._measure(finalist.trial)

    def proposal(self) -> Proposal | None:
        """The best of what has been measured; None before the first measurement."""
        if not self.measurements:
            return None
        found = self._by_setting()
        best = found[0]
        # As good as the best one: rather no change, then few processes, then no waiting.
        chosen = min((one for one in found if self._is_near(one, best, NOISE)), key=self._cost)
        return Proposal(
            measurement=chosen,
            current=next((one for one in found if one.serving == self.current), None),
            keeps_target=chosen.keeps(self.goal),
            changes=chosen.serving != self.current,
            reason=self._reason(chosen),
        )

    def _measure(self, trial: Trial) -> Generator[Trial, Measurement, Measurement]:
        measurement = yield trial
        self.measurements.append(measurement)
        return measurement

    def _best_load(
        self, serving: Serving, best: Measurement | None
    ) -> Generator[Trial, Measurement, Measurement]:
        """The setting's measurement with as many requests under way as are worth it."""
        if self.goal.rate:
            return (yield from self._measure(Trial(serving, 0)))
        at = best.trial.in_flight if best is not None else FIRST_IN_FLIGHT
        missed = 0
        found = yield from self._measure(Trial(serving, at))
        while not found.keeps(self.goal) and at > 1:
            if best is not None and best.keeps(self.goal) and found.throughput < best.throughput:
                return found
            missed, at = at, at // 2
            found = yield from self._measure(Trial(serving, at))
        if not found.keeps(self.goal):
            return found
        while not missed and 2 * at <= MAX_IN_FLIGHT:
            more = yield from self._measure(Trial(serving, 2 * at))
            if not more.keeps(self.goal):
                missed = 2 * at
            elif more.throughput < found.throughput * LEAST_GAIN:
                return found
            else:
                found, at = more, 2 * at
        if missed > at + 1:
            between = yield from self._measure(Trial(serving, (at + missed) // 2))
            found = max(found, between, key=self._worth)
        return found

    def _instances(self, serving: Serving, *, fine: bool) -> Iterator[Serving]:
        most, count = self.space.most_instances, serving.instances
        counts = (count - 1, count + 1) if fine else (1, 2, 4, 8, 16, 32, 64)
        return (replace(serving, instances=count) for count in counts if 1 <= count <= most)

    def _batch_sizes(self, serving: Serving, *, fine: bool) -> Iterator[Serving]:
        least, most, now = self.space.least_batch, self.space.most_batch, serving.max_batch_size
        for size in (now // 2, 2 * now) if fine else (least, *BATCH_SIZES, most):
            if least <= size <= most:
                # Who is alone in a batch has nobody to wait for.
                delay = serving.max_queue_delay if size > 1 else timedelta()
                yield replace(serving, max_batch_size=size, max_queue_delay=delay)

    def _delays(self, serving: Serving, *, fine: bool) -> Iterator[Serving]:
        if serving.max_batch_size == 1:
            return
        if fine:
            delays = [serving.max_queue_delay / 2, serving.max_queue_delay * 2]
        else:
            # In whole tens of microseconds.
            target = 1e6 * self.goal.seconds
            delays = [timedelta(microseconds=round(target * part, -1)) for part in DELAY_SHARES]
        yield from (replace(serving, max_queue_delay=delay) for delay in delays)

    def _worth(self, measurement: Measurement) -> tuple[int, float]:
        """Larger is better: whether it keeps the target, then throughput, or the latency at a given rate."""
        if not measurement.answered or measurement.failed:
            return 0, -measurement.failed
        if measurement.keeps(self.goal):
            return 2, -measurement.latency if self.goal.rate else measurement.throughput
        return 1, -measurement.latency

    def _is_near(self, one: Measurement, best: Measurement, margin: float) -> bool:
        (kind, worth), (best_kind, best_worth) = self._worth(one), self._worth(best)
        return kind == best_kind and worth >= best_worth - margin * abs(best_worth)

    def _finalists(self) -> list[Measurement]:
        """The best, and what is close to it. One that has no rival needs no second look but its own."""
        found = self._by_setting()
        return [one for one in found if self._is_near(one, found[0], CLOSE)][:FINALISTS]

    def _by_setting(self) -> list[Measurement]:
        """Each setting's best trial, by its measurement in the middle; the best setting first."""
        trials: dict[Trial, list[Measurement]] = {}
        for measurement in self.measurements:
            trials.setdefault(measurement.trial, []).append(measurement)
        best: dict[Serving, Measurement] = {}
        for repeated in trials.values():
            # Of two the slower one.
            middle = sorted(repeated, key=lambda one: one.latency)[len(repeated) // 2]
            best[middle.serving] = max(best.get(middle.serving, middle), middle, key=self._worth)
        return sorted(best.values(), key=self._worth, reverse=True)

    def _cost(self, measurement: Measurement) -> tuple[bool, int, timedelta, int]:
        serving = measurement.serving
        # A large batch refuses no large request.
        changes = serving != self.current
        return changes, serving.instances, serving.max_queue_delay, -serving.max_batch_size

    def _reason(self, chosen: Measurement) -> str:
        goal = self.goal
        target = f"{goal.name} of {1000 * goal.seconds:g} ms"
        if not chosen.answered or chosen.failed:
            return "requests failed with every setting; see Triton's log"
        if not chosen.keeps(goal):
            kept = f" at {goal.rate:g} requests/s" if goal.rate else ""
            return f"no setting keeps a {target}{kept}; this one has the lowest"
        if chosen.serving == self.current:
            return f"no other setting is better by more than {NOISE:.0%} at a {target}: keep the current one"
        best = (
            f"the lowest {goal.name} at {goal.rate:g} requests/s"
            if goal.rate
            else f"the highest throughput at a {target}"
        )
        if chosen.serving.max_batch_size < self.current.max_batch_size:
            return f"{best}; requests of more than {chosen.serving.max_batch_size} rows are refused then"
        return best
