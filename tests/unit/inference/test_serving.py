"""How a deployment is served: what may be asked for, and what an operator's change leaves as it is."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.errors import InvalidArgument
from headrace.inference.domain.serving import DEFAULTS, LogRules, Serving, ServingChange, checked
from headrace.inference.messages import log_message, log_rules_from, serving_change_from
from headrace.inference.storage.serving_column import serving_column, serving_from

TUNED = Serving(16, timedelta(milliseconds=2), (8, 16), 3)


@pytest.mark.parametrize(
    ("serving", "field"),
    [
        (Serving(max_batch_size=0), "batching.max_batch_size"),
        (Serving(max_batch_size=4097), "batching.max_batch_size"),
        (Serving(max_queue_delay=timedelta(seconds=11)), "batching.max_queue_delay"),
        (Serving(max_queue_delay=-timedelta(microseconds=1)), "batching.max_queue_delay"),
        (Serving(preferred=(16, 8)), "batching.preferred"),
        (Serving(preferred=(8, 8)), "batching.preferred"),
        (Serving(max_batch_size=8, preferred=(16,)), "batching.preferred"),
        (Serving(instances=0), "instances"),
        (Serving(instances=65), "instances"),
        (Serving(log=LogRules(1.5)), "log.share"),
        (Serving(log=LogRules(float("nan"))), "log.share"),
    ],
)
def test_what_triton_cannot_take_is_refused_by_field(serving: Serving, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        checked(serving)
    assert refused.value.reason == "INVALID_SERVING"
    assert [violation.field for violation in refused.value.fields] == [field]


def test_what_is_not_named_stays_as_it_is() -> None:
    assert ServingChange().of(TUNED) == TUNED
    assert serving_change_from(None, 5).of(TUNED) == Serving(16, timedelta(milliseconds=2), (8, 16), 5)
    # Batches are named whole.
    batching = scheduling_pb2.Batching(max_batch_size=4)
    assert serving_change_from(batching, 0).of(TUNED) == Serving(4, instances=3)
    assert serving_change_from(scheduling_pb2.Batching(), 0).of(TUNED) == Serving(instances=3)
    # So is what is logged, and batches leave it alone.
    tenth = serving_change_from(None, 0, scheduling_pb2.PredictionLogSpec(share=0.1)).of(TUNED)
    assert tenth == replace(TUNED, log=LogRules(0.1))
    assert serving_change_from(batching, 0).of(tenth).log == LogRules(0.1)
    into = scheduling_pb2.PredictionLogSpec(dataset="asked")
    assert serving_change_from(None, 0, into).of(tenth).log == LogRules(1.0, "asked")
    assert log_rules_from(log_message(LogRules(0.0, "asked"))) == LogRules(0.0, "asked")


def test_what_is_logged_is_part_of_how_a_deployment_is_served() -> None:
    texts = {Serving(log=log).text() for log in (LogRules(), LogRules(0.1), LogRules(0.1, "asked"))}
    assert len(texts) == 3
    # A deployment of which nothing is said is not loaded anew by the release that has the setting.
    assert DEFAULTS.text() == "batches up to 64, delay 0 ms, 1 instance"


def test_settings_are_stored_and_rows_from_before_them_have_the_defaults() -> None:
    assert serving_from(serving_column(TUNED)) == TUNED
    assert serving_from({}) == DEFAULTS
    logged = replace(TUNED, log=LogRules(0.25, "asked"))
    assert serving_from(json.loads(json.dumps(serving_column(logged)))) == logged
