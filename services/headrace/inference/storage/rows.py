"""Deployments, rollouts and versions, of rows."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import asyncpg
from pydantic import TypeAdapter

from headrace.api.registry.v1 import registry_pb2
from headrace.inference.domain.analysis import DEFAULT_ANALYSIS, Analysis, Judgement
from headrace.inference.domain.deployments import Deployment, ServedVersion, Tensor
from headrace.inference.domain.drift import DEFAULT_RULES, DriftRules
from headrace.inference.domain.rollouts import Baseline, Plan, Rollout, RolloutState
from headrace.inference.domain.scaling import EVERYWHERE, Scale, Scaling
from headrace.inference.domain.trials import Audience, Shadow
from headrace.inference.storage.serving_column import serving_from
from headrace.model_formats import ModelFormat

# What columns of JSON hold.
ANALYSIS: Final = TypeAdapter(Analysis)
JUDGEMENT: Final = TypeAdapter(Judgement)
BASELINES: Final = TypeAdapter(dict[int, Baseline])
SHADOW: Final = TypeAdapter(Shadow | None)
AUDIENCE: Final = TypeAdapter(Audience | None)
DRIFT_RULES: Final = TypeAdapter(DriftRules)
SCALING: Final = TypeAdapter(Scaling)
SCALE: Final = TypeAdapter(Scale)


def deployment_of(row: asyncpg.Record, rollout: Rollout | None) -> Deployment:
    """A deployment with its last rollout."""
    return Deployment(
        name=row["name"],
        model=row["model"],
        plan=_plan(row),
        create_time=row["create_time"],
        update_time=row["update_time"],
        traffic={int(version): weight for version, weight in row["traffic"].items()},
        loaded=frozenset(row["loaded"]),
        rollout=rollout,
        message=row["message"],
        deleted=row["deleted"],
        drift=DRIFT_RULES.validate_python(row["drift"]) if row["drift"] else DEFAULT_RULES,
        serving=serving_from(row["serving"]),
        served=serving_from(row["served"]),
        scaling=SCALING.validate_python(row["scaling"]) if row["scaling"] else EVERYWHERE,
        scale=SCALE.validate_python(row["scale"]),
        placed=SCALE.validate_python(row["placed"]),
        placed_time=row["placed_time"],
        demanded=row["demanded"],
    )


def _plan(row: asyncpg.Record) -> Plan:
    analysis = ANALYSIS.validate_python(row["analysis"]) if row["analysis"] else DEFAULT_ANALYSIS
    return Plan(
        tuple(row["steps"]),
        timedelta(seconds=row["hold_seconds"]),
        analysis,
        SHADOW.validate_python(row["shadow"]),
        row["sticky_header"],
        AUDIENCE.validate_python(row["audience"]),
    )


def rollout_of(row: asyncpg.Record) -> Rollout:
    """A rollout."""
    return Rollout(
        id=str(row["id"]),
        deployment=row["deployment"],
        from_version=row["from_version"],
        to_version=row["to_version"],
        state=RolloutState(row["state"]),
        traceparent=row["traceparent"],
        create_time=row["create_time"],
        step_time=row["step_time"],
        step=row["step"],
        weight=row["weight"],
        message=row["message"],
        end_time=row["end_time"],
        superseded=row["superseded"],
        paused=row["paused"],
        judgement=JUDGEMENT.validate_python(row["judgement"]) if row["judgement"] else None,
        baselines=BASELINES.validate_python(row["baselines"]),
    )


def served_version_of(row: asyncpg.Record) -> ServedVersion:
    """A promoted version."""
    signature = registry_pb2.Signature.FromString(row["signature"])
    return ServedVersion(
        model=row["model"],
        version=row["version"],
        uri=row["uri"],
        sha256=row["sha256"],
        inputs=tuple(Tensor(t.name, t.datatype, tuple(t.shape)) for t in signature.inputs),
        outputs=tuple(Tensor(t.name, t.datatype, tuple(t.shape)) for t in signature.outputs),
        classes=tuple(signature.classes),
        signature=row["signature"],
        traceparent=row["traceparent"],
        dataset=row["dataset"],
        format=ModelFormat(row["format"]),
        dataset_version=row["dataset_version"],
        features=tuple(signature.features),
        texts=tuple(signature.texts),
        size=row["size"],
    )
