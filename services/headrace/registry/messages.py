"""Between the registry's domain and its messages."""

from __future__ import annotations

import math

from headrace.api.registry.v1 import registry_pb2 as api
from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.registry.domain.gates import Gate, GateResult
from headrace.registry.domain.models import Artifact, Model, Version
from headrace.rpc.convert import to_timestamp
from headrace.rpc.model_formats import to_model_format


def gate_from(message: scheduling_pb2.Gate) -> Gate:
    """A gate as it was asked for."""
    return Gate(
        metric=message.metric,
        split=message.split,
        min=message.min if message.HasField("min") else None,
        max=message.max if message.HasField("max") else None,
    )


def gate_message(gate: Gate) -> scheduling_pb2.Gate:
    """A gate as it is answered."""
    return scheduling_pb2.Gate(metric=gate.metric, split=gate.split, min=gate.min, max=gate.max)


def gate_result_message(result: GateResult) -> api.GateResult:
    """How a version stood at a gate."""
    value = None if result.value is None or math.isnan(result.value) else result.value
    return api.GateResult(
        gate=gate_message(result.gate), value=value, passed=result.passed, message=result.message
    )


def artifact_message(artifact: Artifact) -> api.Artifact:
    """A version's file."""
    return api.Artifact(path=artifact.path, size=artifact.size, sha256=artifact.sha256, uri=artifact.uri)


def model_message(model: Model) -> api.Model:
    """A model."""
    return api.Model(
        name=model.name,
        gates=[gate_message(gate) for gate in model.gates],
        aliases=dict(model.aliases),
        latest_version=model.latest_version,
        create_time=to_timestamp(model.create_time),
        update_time=to_timestamp(model.update_time),
    )


def version_message(version: Version) -> api.ModelVersion:
    """A version, whole."""
    return api.ModelVersion(
        model=version.model,
        version=version.number,
        state=api.ModelVersionState.Value(f"MODEL_VERSION_STATE_{version.state}"),
        artifacts=[artifact_message(artifact) for artifact in version.artifacts],
        lineage=api.Lineage.FromString(version.lineage),
        metrics=dict(version.metrics),
        signature=api.Signature.FromString(version.signature),
        gate_results=[gate_result_message(result) for result in version.gate_results],
        create_time=to_timestamp(version.create_time),
        close_time=to_timestamp(version.close_time),
        traceparent=version.traceparent,
        format=to_model_format(version.format),
    )
