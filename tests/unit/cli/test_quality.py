"""`headrace quality` and `headrace feedback`, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.cli import Headrace, Services

from headrace.api.inference.v1 import inference_pb2 as api
from headrace.cli.output import ExitCode
from headrace.errors import InvalidArgument, NotFound

WITHIN = {"accuracy": api.Quality.Interval(low=0.51, high=0.94321)}


def a_segment(
    name: str, predictions: int, labels: int, accuracy: float | None = None, *, other: bool = False
) -> api.Quality.PerSegment:
    return api.Quality.PerSegment(
        segment=name,
        other=other,
        prediction_count=predictions,
        feedback_count=labels,
        metrics={} if accuracy is None else {"accuracy": accuracy},
        intervals={} if accuracy is None else WITHIN,
    )


def some_quality(*segments: api.Quality.PerSegment, gaps: list[api.Quality.Gap] | None = None) -> api.Quality:
    return api.Quality(
        deployment="live",
        prediction_count=12_345,
        feedback_count=678,
        metrics={"recall": 0.5, "accuracy": 0.91},
        versions=[
            api.Quality.PerVersion(
                version=3,
                prediction_count=12_345,
                feedback_count=678,
                metrics={"recall": 0.5, "accuracy": 0.91},
                intervals=WITHIN,
            )
        ],
        segments=segments,
        segment_count=40,
        gaps=gaps,
        min_labels=30,
    )


def a_gap(*, certain: bool) -> api.Quality.Gap:
    return api.Quality.Gap(
        metric="accuracy",
        best="ward=1",
        worst="ward=3",
        best_value=0.95,
        worst_value=0.7,
        value=0.25,
        low=0.1 if certain else -0.05,
        high=0.4,
        certain=certain,
    )


def test_each_version_and_segment_is_a_line_and_what_differs_is_said(
    services: Services, headrace: Headrace
) -> None:
    services.answers["GetQuality"] = lambda _: some_quality(
        a_segment("ward=1", 5000, 500, 0.95),
        a_segment("", 400, 0),
        a_segment("ward=3\x1b[2J", 300, 30, 0.7),
        a_segment("", 645, 5, 1.0, other=True),
        gaps=[a_gap(certain=True)],
    )
    result = headrace("quality", "live")
    assert result.exit_code == 0, result.output
    title, versions, version, heading, first, unnamed, third, other, gap = result.stdout.splitlines()
    assert title == "live  12,345 predictions, 678 with a true label"
    assert versions.split() == ["version", "predictions", "labels", "accuracy", "95", "%", "recall"]
    assert version.split() == ["3", "12,345", "678", "0.910", "0.510-0.943", "0.500"]
    assert heading.split()[0] == "segment"
    assert first.split() == ["ward=1", "5,000", "500", "0.950", "0.510-0.943", "-"]
    assert unnamed.split() == ["(none)", "400", "0", "-", "-", "-"]
    # What a terminal would obey is shown.
    assert third.split()[0] == r"ward=3\x1b[2J"
    assert other.startswith("other (38 more)")
    assert gap == "accuracy: ward=3 0.700 is worse than ward=1 0.950 by 0.250 (95 %: 0.100 to 0.400)"


def test_a_gap_that_may_be_chance_says_so(services: Services, headrace: Headrace) -> None:
    services.answers["GetQuality"] = lambda _: some_quality(
        a_segment("ward=1", 1, 1, 1.0), gaps=[a_gap(certain=False)]
    )
    assert headrace("quality", "live").stdout.splitlines()[-1] == (
        "accuracy: ward=3 0.700 is worse than ward=1 0.950 by 0.250 (95 %: -0.050 to 0.400), "
        "which may be chance"
    )


def test_what_is_asked_for_is_asked_and_shown_alone(services: Services, headrace: Headrace) -> None:
    services.answers["GetQuality"] = lambda _: some_quality(
        a_segment("ward=1", 1, 1, 1.0), a_segment("?", 7, 0)
    )
    by_version = headrace("quality", "live", "--by", "version").stdout
    assert "ward=1" not in by_version
    options = ("--by", "segment", "--version", "3", "--segments", "9", "--min-labels", "12")
    by_segment = headrace("quality", "live", *options).stdout.splitlines()
    assert services.requests[-1] == api.GetQualityRequest(
        deployment="live", version=3, max_segments=9, min_labels=12
    )
    assert not any(line.startswith("version") for line in by_segment)
    assert "?: what these requests named is no text of at most 64 bytes" in by_segment
    assert by_segment[-1] == "no gap: fewer than two segments have 30 labels"


@pytest.mark.parametrize("words", [(), ("--by", "segment")])
def test_without_segments_there_is_no_table_of_them(
    services: Services, headrace: Headrace, words: tuple[str, ...]
) -> None:
    services.answers["GetQuality"] = lambda _: some_quality()
    lines = headrace("quality", "live", *words).stdout.splitlines()
    assert ("no request named a segment" in lines) == bool(words)
    assert not any(line.startswith(("segment", "no gap")) for line in lines)


def test_without_labels_there_is_no_metric(services: Services, headrace: Headrace) -> None:
    version = api.Quality.PerVersion(version=1, prediction_count=5)
    services.answers["GetQuality"] = lambda _: api.Quality(
        deployment="live", prediction_count=5, versions=[version]
    )
    _, heading, row = headrace("quality", "live").stdout.splitlines()
    assert (heading.split(), row.split()) == (["version", "predictions", "labels"], ["1", "5", "0"])


def test_programs_get_all_of_it(services: Services, headrace: Headrace) -> None:
    services.answers["GetQuality"] = lambda _: some_quality(
        a_segment("ward=1", 1, 1, 1.0), gaps=[a_gap(certain=True)]
    )
    document = json.loads(headrace("quality", "live", "-o", "json").stdout)
    assert document["gaps"][0]["certain"] is True
    assert document["segments"][0]["intervals"]["accuracy"]["low"] == 0.51


def test_a_deployment_is_described_with_its_gaps_and_not_with_every_segment(
    services: Services, headrace: Headrace
) -> None:
    services.answers["GetDeployment"] = lambda _: api.Deployment(name="live")
    services.answers["GetQuality"] = lambda _: some_quality(
        a_segment("ward=1", 1, 1, 1.0), gaps=[a_gap(certain=True)]
    )
    described = json.loads(headrace("describe", "deployment", "live", "-o", "json").stdout)["quality"]
    assert [gap["worst"] for gap in described["gaps"]] == ["ward=3"]
    assert described["segments"] == []


def test_a_deployment_that_there_is_not(services: Services, headrace: Headrace) -> None:
    def refuse(_: object) -> api.Quality:
        raise NotFound("DEPLOYMENT_NOT_FOUND", "there is no deployment 'x'")

    services.answers["GetQuality"] = refuse
    assert headrace("quality", "x").exit_code == ExitCode.NOT_FOUND


def test_labels_are_numbers_or_texts_and_may_come_from_a_file(
    services: Services, headrace: Headrace, tmp_path: Path
) -> None:
    services.answers["SubmitFeedback"] = lambda _: api.SubmitFeedbackResponse(label_count=6, joined_count=4)
    file = tmp_path / "labels.jsonl"
    file.write_text(
        '{"prediction_id": "p5", "number": 2, "time": "2026-01-02T03:04:05Z"}\n\n'
        '{"prediction_id": "p6", "text": "a=b"}\n'
    )
    result = headrace("feedback", "live", "p1=1", "ward=3/p2=0.5", "p3=benign", 'p4="1"', "-f", str(file))
    assert result.exit_code == 0, result.output
    told = "6 labels stored: 4 joined, 2 waiting for predictions that are not in the log yet\n"
    assert result.stdout == told
    dated = api.TrueLabel(prediction_id="p5", number=2)
    dated.time.FromJsonString("2026-01-02T03:04:05Z")
    assert services.requests == [
        api.SubmitFeedbackRequest(
            deployment="live",
            labels=[
                api.TrueLabel(prediction_id="p1", number=1),
                api.TrueLabel(prediction_id="ward=3/p2", number=0.5),
                api.TrueLabel(prediction_id="p3", text="benign"),
                api.TrueLabel(prediction_id="p4", text='"1"'),
                dated,
                api.TrueLabel(prediction_id="p6", text="a=b"),
            ],
        )
    ]


def test_more_labels_than_one_call_takes_are_several(services: Services, headrace: Headrace) -> None:
    services.answers["SubmitFeedback"] = lambda request: api.SubmitFeedbackResponse(
        label_count=len(request.labels), joined_count=len(request.labels)
    )
    lines = "".join(f'{{"prediction_id": "p{number}", "number": 1}}\n' for number in range(2001))
    result = headrace("feedback", "live", "-f", "-", "-o", "json", input=lines)
    assert json.loads(result.stdout) == {"stored": 2001, "joined": 2001}
    assert [len(request.labels) for request in services.requests] == [1000, 1000, 1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "ID=LABEL"),
        (("p1",), "'p1' is not ID=LABEL"),
        (("-f", "nowhere"), "cannot be read"),
        (("-f", "-"), "line 2"),
    ],
)
def test_what_is_no_label_is_told(headrace: Headrace, words: tuple[str, ...], told: str) -> None:
    result = headrace("feedback", "live", *words, input='{"prediction_id": "p"}\n{"id": 1}\n')
    assert result.exit_code == ExitCode.USAGE
    assert told in result.output


def test_what_the_service_refuses_is_told(services: Services, headrace: Headrace) -> None:
    def refuse(_: object) -> api.SubmitFeedbackResponse:
        raise InvalidArgument("INVALID_FEEDBACK", "labels[0].number must be finite")

    services.answers["SubmitFeedback"] = refuse
    result = headrace("feedback", "live", "p1=NaN")
    assert result.exit_code == ExitCode.INVALID
    assert "labels[0].number must be finite" in result.stderr
