"""How a deployment is served: what may be asked for, and what an operator's change leaves as it is."""

from __future__ import annotations

from datetime import timedelta

import pytest

from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.errors import InvalidArgument
from headrace.inference.domain.serving import DEFAULTS, Serving, ServingChange, checked
from headrace.inference.messages import serving_change_from
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


def test_settings_are_stored_and_rows_from_before_them_have_the_defaults() -> None:
    assert serving_from(serving_column(TUNED)) == TUNED
    assert serving_from({}) == DEFAULTS
