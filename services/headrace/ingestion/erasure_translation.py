"""Erasures in the contract's words, without their subjects."""

from __future__ import annotations

from typing import Final

from headrace.api.ingestion.v1 import erasure_pb2 as api
from headrace.ingestion.domain.erasure import Erasure, ErasureState
from headrace.rpc.convert import to_timestamp

_STATES: Final = {
    ErasureState.REQUESTED: api.ERASURE_STATE_REQUESTED,
    ErasureState.REWRITTEN: api.ERASURE_STATE_REWRITTEN,
    ErasureState.DONE: api.ERASURE_STATE_DONE,
}


def erasure_to_message(erasure: Erasure) -> api.Erasure:
    """The same erasure in the contract's words."""
    return api.Erasure(
        id=erasure.id,
        dataset=erasure.dataset,
        state=_STATES[erasure.state],
        row_count=erasure.row_count,
        rejected_count=erasure.rejected_count,
        versions=erasure.versions,
        create_time=to_timestamp(erasure.create_time),
        end_time=to_timestamp(erasure.end_time),
        problem=erasure.problem,
        prediction_count=erasure.prediction_count,
    )
