"""`headrace explain`: what it asks the service, and what it draws."""

from __future__ import annotations

import json
import math

from tests.support.cli import Headrace, Services

from headrace.api.inference.v1 import inference_pb2 as api
from headrace.cli.output import ExitCode
from headrace.errors import ResourceExhausted

EXPLANATION = api.Explanation(
    deployment="live",
    version=3,
    baseline=api.BASELINE_KIND_TRAINING,
    rows=[
        api.RowExplanation(
            output="probabilities",
            answer_class='"ill"',
            answer=0.9,
            baseline_answer=0.3,
            completeness_gap=0.001,
            method=api.EXPLANATION_METHOD_SHAPLEY_SAMPLING,
            attributions=[
                api.Attribution(feature="age", value="64", baseline_value="40", amount=-0.1),
                api.Attribution(
                    feature="colour", value='"red"', baseline_value='"blue"', amount=0.6, error=0.01
                ),
                api.Attribution(feature="photo[0:4,0:4]", amount=0.1),
            ],
            evaluations=1200,
            samples=16,
            stopped=api.EXPLANATION_STOP_DEADLINE,
        )
    ],
)


def test_rows_are_asked_about_and_drawn_by_their_amounts(headrace: Headrace, services: Services) -> None:
    services.answers["Explain"] = lambda _: EXPLANATION
    result = headrace("explain", "live", "-d", '[[64, null, "red"], [1, 2, null]]', "--top", "2")
    assert result.exit_code == ExitCode.OK
    lines = result.stdout.splitlines()
    assert 'class "ill"  0.9, and 0.3 of the baseline' in lines[0]
    assert [line.split()[0] for line in lines[2:5]] == ["colour", "age", "1"]
    assert "+0.6000" in lines[2]
    assert f"│{'█' * 12}" in lines[2]
    assert "██│" in lines[3]
    assert "1 others" in lines[4]
    assert "version 3, shapley sampling, baseline training, 1,200 evaluations" in lines[5]
    assert "Time was up" in lines[6]
    (request,) = services.requests
    numbers = list(request.rows.numbers)
    assert math.isnan(numbers.pop(1))
    assert numbers == [64, 1, 2]
    assert list(request.rows.texts) == ["red", ""]
    assert (request.baseline_kind, request.method) == (api.BASELINE_KIND_TRAINING, 0)


def test_a_prediction_is_asked_about_with_every_wish(headrace: Headrace, services: Services) -> None:
    services.answers["Explain"] = lambda _: EXPLANATION
    wishes = ["--version", "2", "--method", "shapley-sampling", "--class", "ill", "--evaluations", "500"]
    result = headrace(
        *("explain", "live", "--prediction", "p1", "--baseline", '[1, "x"]', "--patches", "4", "-o", "json"),
        *wishes,
    )
    assert json.loads(result.stdout)["rows"][0]["attributions"][1]["amount"] == 0.6
    assert services.requests == [
        api.ExplainRequest(
            deployment="live",
            prediction="p1",
            version=2,
            method=api.EXPLANATION_METHOD_SHAPLEY_SAMPLING,
            baseline_row=api.InputRows(numbers=[1], texts=["x"]),
            answer_class="ill",
            max_evaluations=500,
            patches=4,
        )
    ]


def test_what_makes_no_sense_is_refused_before_anybody_is_asked(
    headrace: Headrace, services: Services
) -> None:
    wrong = [
        ["live"],
        ["live", "-d", "[[1]]", "--prediction", "p1"],
        ["live", "-d", "[[1]]", "--method", "guessing"],
    ]
    assert [headrace("explain", *words).exit_code for words in wrong] == [ExitCode.USAGE] * 3
    invalid = [
        ["-d", "1,2"],
        ["-d", "{}"],
        ["-d", "[[1]]", "--baseline", "[[1], [2]]"],
        ["-d", "[[1], [2, 3]]"],
    ]
    assert [headrace("explain", "live", *words).exit_code for words in invalid] == [ExitCode.INVALID] * 4
    assert services.requests == []


def test_a_full_queue_says_so(headrace: Headrace, services: Services) -> None:
    def busy(_: api.ExplainRequest) -> api.Explanation:
        raise ResourceExhausted(
            "EXPLAINER_BUSY", "9 explanations are being computed or wait; try again later"
        )

    services.answers["Explain"] = busy
    result = headrace("explain", "live", "-d", "[[1]]")
    assert result.exit_code == ExitCode.FAILED
    assert "EXPLAINER_BUSY" in result.stderr
