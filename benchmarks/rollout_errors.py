"""How often the judging of rollouts errs, and how soon it sees harm: by simulation.

    python benchmarks/rollout_errors.py [--runs 1000] [--requests 100000] [--json FILE]

A run is one step with 10 % of the traffic for the new version, looked at again and again: after 500 requests,
then after every 5 % more. First the new version is exactly as much worse as is allowed, where every rollback
is false; beside it stands a fixed-sample z-test of the same 1 % that is looked at just as often. Then it is
worse by a stated effect, where the share of the runs that see it, and the new version's requests until then,
are what counts. Last, requests that are not independent: every caller stays on one of two equal versions, as
`sticky` has it, and some callers fail more than others on either.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from headrace.inference.domain.analysis import BUCKETS_PER_DOUBLING, Analysis, log_threshold
from headrace.inference.domain.sequential import (
    Histogram,
    Tally,
    log_e_above,
    log_e_increase,
    log_e_quantile,
)

SHARE = 0.1
# Of callers, in an A/B test.
STICKY_SHARE = 0.5
FIRST, GROWTH = 500, 1.05
# One criterion at one step, so that the whole 1 % is the test's own.
THRESHOLD = log_threshold(Analysis(confidence=0.99), steps=1)
Z_99 = 2.326
# Of latencies, whose logarithms are normal.
SPREAD = 0.5


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one setting: shares of the runs that rejected, and the median of requests until then."""

    what: str
    harmful: bool
    rejected: float
    requests: float | None
    z_test_rejected: float | None


def looks(requests: int) -> Iterator[int]:
    """Numbers of requests, in all, at which one looks."""
    at = float(FIRST)
    while at <= requests:
        yield int(at)
        at *= GROWTH


def failures(
    rng: np.random.Generator, requests: int, new_rate: float, old_rate: float, margin: float
) -> tuple[int | None, bool]:
    """The new version's requests when its failures were too many; whether the z-test ever said so."""
    new, old, before, fixed = Tally(), Tally(), 0, False
    for at in looks(requests):
        asked = int(rng.binomial(at - before, SHARE))
        rest = at - before - asked
        new = Tally(new.hits + int(rng.binomial(asked, new_rate)), new.total + asked)
        old = Tally(old.hits + int(rng.binomial(rest, old_rate)), old.total + rest)
        before = at
        fixed = fixed or z_score(new, old, margin) > Z_99
        if log_e_increase(new, old, margin) >= THRESHOLD:
            return new.total, True
    return None, fixed


def z_score(new: Tally, old: Tally, margin: float) -> float:
    """The unpooled z-test's score of an increase beyond the margin."""
    variance = new.share * (1 - new.share) / new.total + old.share * (1 - old.share) / old.total
    return (new.share - old.share - margin) / math.sqrt(variance) if variance else 0.0


def latencies(
    rng: np.random.Generator, requests: int, probability: float, slower: float, ratio: float
) -> int | None:
    """The new version's requests when its quantile was too high."""
    new: Counter[int] = Counter()
    old: Counter[int] = Counter()
    before = 0
    shift = math.ceil(BUCKETS_PER_DOUBLING * math.log2(ratio))
    for at in looks(requests):
        asked = int(rng.binomial(at - before, SHARE))
        new.update(buckets(rng, asked, slower))
        old.update(buckets(rng, at - before - asked, 1.0))
        before = at
        if log_e_quantile(Histogram(new), Histogram(old), probability, shift) >= THRESHOLD:
            return new.total()
    return None


def buckets(rng: np.random.Generator, count: int, slower: float) -> list[int]:
    """Latencies around 10 ms times that, by bucket."""
    seconds = 0.01 * slower * rng.lognormal(0.0, SPREAD, count)
    found: list[int] = np.ceil(BUCKETS_PER_DOUBLING * np.log2(seconds)).astype(int).tolist()
    return found


def error_rate_rows(runs: int, requests: int) -> Iterator[Row]:
    """Settings of error rates; quality and drift are judged by the same test."""
    for old_rate, new_rate, margin in (
        (0.001, 0.001, 0.0),
        (0.02, 0.02, 0.0),
        (0.2, 0.2, 0.0),
        (0.02, 0.03, 0.01),
        (0.001, 0.02, 0.01),
        (0.02, 0.05, 0.01),
        (0.02, 0.10, 0.01),
        (0.001, 0.50, 0.01),
    ):
        results = [
            failures(np.random.default_rng(seed), requests, new_rate, old_rate, margin)
            for seed in range(runs)
        ]
        harmful = new_rate > old_rate + margin + 1e-12
        yield row(
            f"{new_rate:.1%} fail, of the old {old_rate:.1%}, {margin:.0%} more allowed",
            harmful,
            [seen for seen, _ in results],
            None if harmful else sum(fixed for _, fixed in results) / runs,
        )


def clustered(
    rng: np.random.Generator, requests: int, callers: int, failing: float, rate: float, margin: float
) -> int | None:
    """The new version's requests when its failures were too many, of callers who stay on their version.

    Half of the callers are on either version. That share of all callers fails that often, on whichever.
    """
    on_new = int(rng.binomial(callers, STICKY_SHARE))
    bad = round(callers * failing)
    bad_on_new = int(rng.hypergeometric(bad, callers - bad, on_new)) if on_new else 0
    shares = np.array([bad_on_new, on_new - bad_on_new, bad - bad_on_new]) / callers
    new, old, before = Tally(), Tally(), 0
    for at in looks(requests):
        counts = rng.multinomial(at - before, [*shares, 1 - shares.sum()])
        failed = rng.binomial(counts[[0, 2]], rate)
        new = Tally(new.hits + int(failed[0]), new.total + int(counts[0] + counts[1]))
        old = Tally(old.hits + int(failed[1]), old.total + int(counts[2] + counts[3]))
        before = at
        if log_e_increase(new, old, margin) >= THRESHOLD:
            return new.total
    return None


def clustered_rows(runs: int, requests: int) -> Iterator[Row]:
    """Settings of two equal versions among which callers are drawn, and not requests."""
    for callers, failing, rate, margin in (
        (100, 0.1, 1.0, 0.05),
        (100, 0.1, 1.0, 0.14),
        (300, 0.1, 1.0, 0.05),
        (1_000, 0.1, 1.0, 0.05),
        (1_000, 0.1, 1.0, 0.01),
        (10_000, 0.1, 1.0, 0.01),
        (100, 0.1, 0.2, 0.05),
    ):
        seen = [
            clustered(np.random.default_rng(seed), requests, callers, failing, rate, margin)
            for seed in range(runs)
        ]
        how = "always" if rate == 1 else f"at {rate:.0%} of their requests"
        what = (
            f"as good, each of {callers:,} callers on one version, {failing:.0%} of them fail {how}, "
            f"{margin:.0%} more allowed"
        )
        yield row(what, False, seen, None)


def disagreement_rows(runs: int, requests: int) -> Iterator[Row]:
    """Settings of a shadow that is asked a tenth of the requests."""
    for differing, allowed in ((0.01, 0.01), (0.05, 0.05), (0.02, 0.01), (0.1, 0.05), (0.5, 0.05)):
        seen = [
            disagreement(np.random.default_rng(seed), requests, differing, allowed) for seed in range(runs)
        ]
        what = f"{differing:.0%} of a shadow's answers differ, {allowed:.0%} allowed"
        yield row(what, differing > allowed, seen, None)


def disagreement(rng: np.random.Generator, requests: int, differing: float, allowed: float) -> int | None:
    """The requests that a shadow was asked when its answers differed too often."""
    found, before = Tally(), 0
    for at in looks(requests):
        asked = int(rng.binomial(at - before, SHARE))
        found = Tally(found.hits + int(rng.binomial(asked, differing)), found.total + asked)
        before = at
        if log_e_above(found, allowed) >= THRESHOLD:
            return found.total
    return None


def latency_rows(runs: int, requests: int) -> Iterator[Row]:
    """Settings of latencies."""
    for probability, slower, ratio in ((0.5, 1.0, 1.0), (0.99, 1.0, 1.0), (0.5, 1.5, 1.2), (0.99, 3.0, 1.5)):
        seen = [
            latencies(np.random.default_rng(seed), requests, probability, slower, ratio)
            for seed in range(runs)
        ]
        what = f"p{100 * probability:.0f} is {slower:g} times the old one, {ratio:g} times allowed"
        yield row(what, slower > ratio, seen, None)


def row(what: str, harmful: bool, seen: list[int | None], z_test: float | None) -> Row:
    """Sum a setting's runs up."""
    rejected = [requests for requests in seen if requests is not None]
    median = float(np.median(rejected)) if harmful and rejected else None
    return Row(what, harmful, len(rejected) / len(seen), median, z_test)


def main() -> None:
    """Simulate, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [
        *error_rate_rows(options.runs, options.requests),
        *disagreement_rows(options.runs, options.requests),
        *clustered_rows(options.runs, options.requests),
        # A tenth of the runs: each look goes over two histograms.
        *latency_rows(max(1, options.runs // 10), options.requests),
    ]
    count = len(list(looks(options.requests)))
    print(f"{options.runs} runs (latencies: a tenth), {options.requests} requests, {count} looks each\n")
    print("| new version | sent back | its requests until then (median) | z-test, looked at as often |")
    print("|---|---|---|---|")
    for found in rows:
        requests = "-" if found.requests is None else f"{found.requests:.0f}"
        z_test = "-" if found.z_test_rejected is None else f"{found.z_test_rejected:.1%}"
        label = "" if found.harmful else " (harmless)"
        print(f"| {found.what}{label} | {found.rejected:.1%} | {requests} | {z_test} |")
    if options.json:
        options.json.write_text(json.dumps([asdict(found) for found in rows], indent=2))


if __name__ == "__main__":
    main()
