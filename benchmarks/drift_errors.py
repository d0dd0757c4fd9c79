"""How often a window is called drifting, where nothing has changed and where something has: by simulation.

    python benchmarks/drift_errors.py [--runs 100] [--json FILE]

30 columns that depend on each other, a third of them whole numbers, a profile of 1,000 rows as ingestion
answers it (99 quantiles, ranks uncertain by 0.0133), one window. Beside the service's judgement stand its
halves: tests at 1 % without adjustment or a bound on the effect, and the stability index of 0.2 alone.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headrace.inference.domain.chance import holm
from headrace.inference.domain.drift import Column, DriftRules, Finding, Numbers, Reference, Window, judge

COLUMNS = 30
PROFILED = 1000
WINDOWS = (100, 500, 5000)
RANKS = tuple(hundredth / 100 for hundredth in range(1, 100))
RANK_ERROR = 0.0133
RULES = DriftRules()

Sample = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Change:
    """What has become of the first column: its mean by so many deviations, and values that are missing."""

    what: str
    shift: float = 0.0
    missing: float = 0.0


CHANGES = (
    Change("nothing"),
    Change("one mean by 0.1 deviations", shift=0.1),
    Change("one mean by half a deviation", shift=0.5),
    Change("one mean by a deviation", shift=1.0),
    Change("every tenth value of one is missing", missing=0.1),
)


@dataclass(frozen=True, slots=True)
class Row:
    """Shares of the windows that have a column that drifts."""

    change: str
    requests: int
    called: float
    test_alone: float
    index_alone: float


def rows(rng: np.random.Generator, count: int, change: Change) -> Sample:
    """So many rows, NaN where a value is missing."""
    common = rng.normal(0, 1, (count, 1))
    table = np.sqrt(0.5) * (common + rng.normal(0, 1, (count, COLUMNS)))
    table[:, ::3] = np.floor(2 * table[:, ::3])
    # The second column is no whole number.
    table[:, 1] += change.shift
    table[rng.random(count) < change.missing, 1] = np.nan
    return table


def profile(table: Sample) -> Reference:
    """The table's profile."""
    columns = {}
    for place in range(COLUMNS):
        column = table[:, place]
        values = np.quantile(column, RANKS, method="inverted_cdf")
        bounds = float(column.min()), float(column.max())
        columns[f"x{place}"] = Column(
            Numbers(len(column), *bounds, RANKS, tuple(values.tolist()), RANK_ERROR)
        )
    return Reference(columns)


def unadjusted(reference: Reference, window: Window) -> list[Finding]:
    """Every column judged as if it were the only one."""
    return [
        finding
        for name, values in window.numbers.items()
        for finding in judge(RULES, reference, replace(window, numbers={name: values}))
    ]


def simulate(change: Change, requests: int, runs: int) -> Row:
    """As many windows against as many profiles."""
    rng = np.random.default_rng(11)
    called = test_alone = index_alone = 0
    for _ in range(runs):
        reference = profile(rows(rng, PROFILED, CHANGES[0]))
        table = rows(rng, requests, change).astype(np.float32)
        window = Window(requests, {f"x{place}": table[:, place] for place in range(COLUMNS)})
        alone = unadjusted(reference, window)
        # As `judge` does for the whole window.
        adjusted = holm([finding.p_value for finding in alone])
        called += any(
            p_value <= 1 - RULES.confidence and finding.psi >= RULES.min_psi
            for p_value, finding in zip(adjusted, alone, strict=True)
        )
        test_alone += any(finding.p_value <= 1 - RULES.confidence for finding in alone)
        index_alone += any(finding.psi >= RULES.min_psi for finding in alone)
    return Row(change.what, requests, called / runs, test_alone / runs, index_alone / runs)


def main() -> None:
    """Simulate, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = [simulate(change, requests, arguments.runs) for change in CHANGES for requests in WINDOWS]
    print("| what has changed | window | called drifting | any test of 1 % | any index of 0.2 |")
    print("|---|---|---|---|---|")
    for row in found:
        shares = " | ".join(f"{share:.1%}" for share in (row.called, row.test_alone, row.index_alone))
        print(f"| {row.change} | {row.requests:,} | {shares} |")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in found], indent=2) + "\n")


if __name__ == "__main__":
    main()
