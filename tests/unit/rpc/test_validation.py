"""The compiled checks say what protovalidate says."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import protovalidate
import pytest
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from buf.validate import validate_pb2
from headrace.api.inference.v1 import inference_pb2 as inference
from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.api.registry.v1 import registry_pb2 as registry
from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
from headrace.api.training.v1 import training_pb2 as training
from headrace.errors import InvalidArgument
from headrace.rpc.validation import RequestValidator, _rule_check, _unsure

UUID = "4f7f2b3e-7b0c-4a9f-9a5e-0d3c9c0f6a11"
FIELD = ingestion.Field(name="x", type=ingestion.FIELD_TYPE_FLOAT32, min=0)
SCHEMA = ingestion.Schema(key="id", features=[FIELD], label=FIELD)
SPEC = scheduling.PipelineSpec(
    dataset=scheduling.PipelineSpec.DatasetSpec(schema=SCHEMA),
    training=scheduling.TrainingSpec(recipe="mlp", split=scheduling.Split(train=0.8, test=0.2)),
    gates=[scheduling.Gate(metric="accuracy", split="test", min=0.9)],
    deployment=scheduling.PipelineSpec.DeploymentSpec(
        name="d", rollout=scheduling.RolloutSpec(steps=[10, 100])
    ),
)

UNKNOWN = ingestion.Field(name="y", type=99)  # type: ignore[arg-type]

VALID: list[Message] = [
    scheduling.ApplyPipelineRequest(name="p", spec=SPEC),
    scheduling.GetJobRequest(id=UUID),
    scheduling.ListNodesRequest(),
    scheduling.AttachNodeRequest(node="n", capacity=scheduling.Resources(cpu=2)),
    ingestion.AppendSamplesRequest(dataset="d", json=b"{}"),
    ingestion.ListVersionsRequest(dataset="d", page_size=1000),
    ingestion.ApplyDatasetRequest(
        name="d", schema=SCHEMA, rejects=ingestion.Rejects(window=Duration(seconds=1))
    ),
    ingestion.ApplyDatasetRequest(
        name="d", schema=SCHEMA, retention=ingestion.Retention(rows=Duration(seconds=3_600))
    ),
    ingestion.ReplayRejectedRequest(
        ids=[1, 2], correction=ingestion.Correction(attributes={"type": "t", "time": "2026-01-02T03:04:05Z"})
    ),
    registry.UploadArtifactRequest(chunk=b"bytes"),
    registry.UploadArtifactRequest(
        header=registry.UploadArtifactRequest.Header(
            artifact=registry.Artifact(path="model.onnx", size=3, sha256="0" * 64)
        )
    ),
    registry.SetAliasRequest(model="m", alias="blue"),
    inference.ApplyDeploymentRequest(name="d", model="m"),
]

INVALID: list[tuple[Message, str]] = [
    (scheduling.ApplyPipelineRequest(name="p"), "spec"),
    (scheduling.ApplyPipelineRequest(name="P", spec=SPEC), "name"),
    (scheduling.ApplyPipelineRequest(name="p\n", spec=SPEC), "name"),
    (scheduling.GetJobRequest(id="job-7"), "id"),
    (scheduling.AttachNodeRequest(node="n"), "capacity"),
    (scheduling.AttachNodeRequest(node="n", capacity=scheduling.Resources(cpu=-1)), "capacity.cpu"),
    (scheduling.AttachNodeRequest(node="n", capacity=scheduling.Resources(cpu=float("nan"))), "capacity.cpu"),
    (ingestion.AppendSamplesRequest(dataset="d", json=b"x"), "json"),
    (ingestion.ListVersionsRequest(dataset="d", page_size=1001), "page_size"),
    (
        ingestion.ApplyDatasetRequest(name="d", schema=ingestion.Schema(key="id", label=FIELD)),
        "schema.features",
    ),
    (
        ingestion.ApplyDatasetRequest(
            name="d",
            schema=ingestion.Schema(key="id", label=FIELD, features=[FIELD, UNKNOWN]),
        ),
        "schema.features[1].type",
    ),
    *(
        (
            ingestion.ApplyDatasetRequest(name="d", schema=SCHEMA, rejects=ingestion.Rejects(window=window)),
            "rejects.window",
        )
        for window in (Duration(nanos=999_999_999), Duration(seconds=2_592_001))
    ),
    *(
        (
            ingestion.ApplyDatasetRequest(name="d", schema=SCHEMA, retention=retention),
            f"retention.{retention.ListFields()[0][0].name}",
        )
        for retention in (
            ingestion.Retention(rows=Duration(seconds=3_599)),
            ingestion.Retention(versions=Duration(seconds=-1)),
            ingestion.Retention(rejected=Duration(seconds=3_155_760_001)),
        )
    ),
    (ingestion.ReplayRejectedRequest(ids=[1, 2, 1]), "ids"),
    (
        ingestion.ReplayRejectedRequest(ids=[1], correction=ingestion.Correction(attributes={"id": "e"})),
        "correction.attributes[id]",
    ),
    (
        scheduling.ApplyPipelineRequest(
            name="p",
            spec=scheduling.PipelineSpec(dataset=SPEC.dataset, training=SPEC.training, max_retries=101),
        ),
        "spec.max_retries",
    ),
    (
        inference.ApplyDeploymentRequest(
            name="d", model="m", rollout=scheduling.RolloutSpec(steps=[10, 101])
        ),
        "rollout.steps[1]",
    ),
]


@pytest.fixture(scope="module")
def validator() -> RequestValidator:
    return RequestValidator()


@pytest.mark.parametrize("message", VALID, ids=lambda message: type(message).__name__)
def test_a_valid_request_passes_without_the_interpreter(
    validator: RequestValidator, message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(_: Message) -> None:
        raise AssertionError("the compiled checks were not sure")

    protovalidate.Validator().validate(message)
    monkeypatch.setattr(validator, "_violations", forbidden)
    validator.check(message)


@pytest.mark.parametrize(("message", "field"), INVALID, ids=[field for _, field in INVALID])
def test_an_invalid_request_names_the_field(
    validator: RequestValidator, message: Message, field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        validator.check(message)
    assert caught.value.reason == "INVALID_REQUEST"
    assert [violation.field for violation in caught.value.fields] == [field]
    assert caught.value.message.startswith(f"{field}: ")


ORACLE = protovalidate.Validator()
CHECKER = RequestValidator()
NAMES = st.text("abZ09-_ \n", max_size=6)


@given(
    st.builds(
        scheduling.ApplyPipelineRequest,
        name=NAMES,
        spec=st.builds(
            scheduling.PipelineSpec,
            dataset=st.just(SPEC.dataset),
            training=st.builds(scheduling.TrainingSpec, recipe=NAMES),
            max_retries=st.integers(-2, 102),
            gates=st.lists(
                st.builds(scheduling.Gate, metric=NAMES, split=st.sampled_from(["test", "x", ""])), max_size=2
            ),
        ),
    )
)
def test_both_agree_on_any_pipeline(message: scheduling.ApplyPipelineRequest) -> None:
    expected = len(ORACLE.collect_violations(message))
    try:
        CHECKER.check(message)
        found = 0
    except InvalidArgument as error:
        found = len(error.fields)
    assert found == expected


def messages_of(descriptor: FileDescriptor) -> Iterator[Descriptor]:
    pending = list(descriptor.message_types_by_name.values())
    while pending:
        message = pending.pop()
        yield message
        pending += message.nested_types


@pytest.mark.parametrize(
    "file", [ingestion, scheduling, training, registry, inference], ids=lambda f: f.__name__
)
def test_no_rule_of_ours_needs_the_interpreter(file: ModuleType) -> None:
    for message in messages_of(file.DESCRIPTOR):
        for field in message.fields:
            options = field.GetOptions()
            if options.HasExtension(validate_pb2.field):
                check = _rule_check(field, options.Extensions[validate_pb2.field])
                assert check is not _unsure, field.full_name
