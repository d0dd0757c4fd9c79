from __future__ import annotations

from datetime import UTC, datetime

from tests.support.training import a_task, features

from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.training.domain.runs import Run
from headrace.training.executor import specification


def test_a_run_is_told_of_features_and_of_no_attribute() -> None:
    task = a_task("p", "file:///table")
    task.schema.attributes.add(
        name="sex", type=ingestion.FIELD_TYPE_INT8, role=ingestion.FIELD_ROLE_PROTECTED
    )
    run = Run("r", task.job, 1, "p", "n", "", datetime(2026, 1, 2, tzinfo=UTC))
    spec = specification(task, run, "file:///store")
    assert [column.name for column in spec.dataset.features] == features()
    assert "sex" not in spec.model_dump_json()
