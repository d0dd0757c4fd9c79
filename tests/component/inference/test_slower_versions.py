"""A version that answers as well as the old one, and later: by what it goes back, and what is said of it."""

from __future__ import annotations

import pytest
from tests.component.inference.conftest import DEADLINE, Plane
from tests.component.inference.test_rollout_operations import command
from tests.component.inference.test_rollouts import calling, rollouts_told, until_answered
from tests.support.models import classifier, slow_classifier

from headrace.api.inference.v1 import inference_pb2 as api
from headrace.api.scheduling.v1 import scheduling_pb2

pytestmark = pytest.mark.broker

P50, P99 = api.ROLLOUT_CRITERION_LATENCY_P50, api.ROLLOUT_CRITERION_LATENCY_P99
# Answers as `slow_classifier` does, whatever the row.
QUICK = classifier(2.0)
# For a row of this number the slow one takes a hundred times as long.
LONG = 1_000.0
ALLOWED = 3.0


def plan(*, p50: float, p99: float) -> scheduling_pb2.RolloutSpec:
    """Latency is judged, and answers beside it."""
    spec = scheduling_pb2.RolloutSpec()
    spec.analysis.latency_p50.max_ratio = p50
    spec.analysis.latency_p99.max_ratio = p99
    spec.analysis.drift.max_shift = 0.2
    spec.analysis.min_samples = 20
    spec.analysis.longest_hold.FromSeconds(int(2 * DEADLINE))
    return spec


@pytest.mark.parametrize(
    ("criterion", "shown", "features", "allowed"),
    [
        # The other percentile may be a thousand times as long.
        (P50, "LATENCY_P50", [LONG], {"p50": ALLOWED, "p99": 1000.0}),
        (P99, "LATENCY_P99", [*[1.0] * 9, LONG], {"p50": ALLOWED, "p99": ALLOWED}),
    ],
    ids=["every answer", "one answer of ten"],
)
async def test_a_version_that_answers_later_goes_back_with_its_numbers(
    plane: Plane,
    name: str,
    criterion: api.RolloutCriterion,
    shown: str,
    features: list[float],
    allowed: dict[str, float],
) -> None:
    await plane.deploy(name, steps=(50, 100), hold=2 * DEADLINE, rollout=plan(**allowed))
    await plane.promote(name, 1, QUICK)
    await plane.until_live(name, 1)
    async with calling(plane, name, features=features) as calls:
        await plane.promote(name, 2, slow_classifier())
        back = await plane.until(name, lambda d: d.rollout.state == api.ROLLOUT_STATE_ROLLED_BACK)
        await until_answered(calls, 10)
    assert calls.failures == []
    assert [(t.version, t.weight) for t in back.traffic] == [(1, 100)]

    last = (await rollouts_told(plane, name))[-1]
    assert last.judgement.verdict == api.ROLLOUT_VERDICT_ROLL_BACK
    [finding] = [f for f in last.judgement.findings if f.standing == api.ROLLOUT_STANDING_VIOLATED]
    assert finding.criterion == criterion
    assert finding.limit == ALLOWED < finding.low <= finding.effect
    assert finding.new_value > ALLOWED * finding.old_value > 0
    assert min(finding.new_samples, finding.old_samples) >= 20

    longer = f"{finding.effect:.3g} times as long, {ALLOWED:g} times is allowed"
    assert last.message.startswith("version 2 takes ")
    assert last.message.endswith(f"({shown}): {longer}")
    lines = (await command(plane, "rollout", "status", name)).stdout.splitlines()
    assert "verdict ROLL_BACK" in [line.strip() for line in lines]
    [row] = [line.split() for line in lines if line.split()[:2] == [shown, "VIOLATED"]]
    new, old = (f"{1000 * value:.3g}" for value in (finding.new_value, finding.old_value))
    high = f"{finding.high:.2f}x" if finding.HasField("high") else "?"
    samples = f"{finding.new_samples}/{finding.old_samples}"
    assert row[2:] == [new, "ms", old, "ms", f"{finding.low:.2f}x..{high}", f"{ALLOWED:.2f}x", samples]


async def test_a_version_that_answers_as_soon_goes_on(plane: Plane, name: str) -> None:
    await plane.deploy(name, steps=(50, 100), hold=1, rollout=plan(p50=ALLOWED, p99=10 * ALLOWED))
    await plane.promote(name, 1, QUICK)
    await plane.until_live(name, 1)
    async with calling(plane, name) as calls:
        await plane.promote(name, 2, QUICK)
        await plane.until_live(name, 2)
    assert calls.failures == []
    advanced = [
        rollout.judgement
        for rollout in await rollouts_told(plane, name)
        if rollout.judgement.verdict == api.ROLLOUT_VERDICT_ADVANCE
    ]
    # One for each step, by what was measured.
    assert advanced
    for judgement in advanced:
        findings = {finding.criterion: finding for finding in judgement.findings}
        assert findings[P50].standing == findings[P99].standing == api.ROLLOUT_STANDING_WITHIN
        assert 0 < findings[P50].effect <= ALLOWED
        assert min(findings[P50].new_samples, findings[P50].old_samples) >= 20
