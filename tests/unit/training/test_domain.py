from __future__ import annotations

from datetime import UTC, datetime

import pytest

from headrace.training.domain.runs import LAST_LINES, Run, RunState, exit_text, failed, run_id, stopped

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def a_run() -> Run:
    return Run(run_id("job", 2), "job", 2, "pipeline", "node", "", NOW)


def test_ends_say_when_and_why() -> None:
    broken = failed(a_run(), "RUN_FAILED", "exit code 1", NOW)
    assert (broken.id, broken.state, broken.reason, broken.end_time) == (
        "job-2",
        RunState.FAILED,
        "RUN_FAILED",
        NOW,
    )
    assert stopped(a_run(), "no longer desired", NOW).state is RunState.STOPPED


@pytest.mark.parametrize("state", RunState)
def test_only_three_states_are_the_end(state: RunState) -> None:
    assert state.ended == (state in {RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED})


def test_an_exit_is_told_with_the_last_lines() -> None:
    assert exit_text(3, []) == "the run ended with exit code 3"
    assert exit_text(-9, ["one", "two"]) == "the run ended with killed by SIGKILL; its last lines:\none\ntwo"
    told = exit_text(1, [str(number) for number in range(100)]).splitlines()
    assert told[1:] == [str(number) for number in range(100 - LAST_LINES, 100)]
