"""What scheduling keeps for others and does not look into: specifications, schemas, dataset versions.

They stay the messages that they came as; the parts that scheduling judges are taken out of them here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from headrace.api.ingestion.v1 import ingestion_pb2
from headrace.api.scheduling.v1 import scheduling_pb2 as pb
from headrace.rpc.convert import from_duration
from headrace.scheduling.domain.job import Job
from headrace.scheduling.domain.pipeline import Gate, PipelineRules, Rollout, Split, job_resources
from headrace.scheduling.domain.preparation import Preparation
from headrace.scheduling.domain.resources import Resources
from headrace.scheduling.domain.retraining import DEFAULT_COOLDOWN, DEFAULT_MAX_PER_DAY, RetrainRules


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A stored pipeline."""

    name: str
    spec: pb.PipelineSpec
    generation: int
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class JobDocuments:
    """What a job's run needs beyond the job itself."""

    training: pb.TrainingSpec
    schema: ingestion_pb2.Schema
    dataset_version: ingestion_pb2.DatasetVersion


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job and its documents, as stored."""

    job: Job
    documents: JobDocuments


def rules_of(spec: pb.PipelineSpec) -> PipelineRules:
    """The parts of a pipeline that scheduling judges."""
    split = spec.training.split
    stepwise, rollout = spec.deployment.HasField("rollout"), spec.deployment.rollout
    return PipelineRules(
        split=Split(split.train, split.validation, split.test) if spec.training.HasField("split") else None,
        cpu=spec.resources.cpu,
        memory=spec.resources.memory_bytes,
        gpu=spec.resources.gpu,
        priority=spec.priority,
        deadline=from_duration(spec.deadline) if spec.HasField("deadline") else None,
        gates=[
            Gate(
                gate.metric,
                gate.split,
                gate.min if gate.HasField("min") else None,
                gate.max if gate.HasField("max") else None,
            )
            for gate in spec.gates
        ],
        rollout=(
            Rollout(tuple(rollout.steps), from_duration(rollout.hold), rollout.HasField("audience"))
            if stepwise
            else None
        ),
        preparations=[_preparation(wish) for wish in spec.training.preparations],
        feature_types={
            feature.name: _word(ingestion_pb2.FieldType.Name(feature.type), "FIELD_TYPE_")
            for feature in spec.dataset.schema.features
        },
        feature_shapes={
            feature.name: tuple(feature.tensor.shape) for feature in spec.dataset.schema.features
        },
        label_normalisation=_normalisation(spec.training.normalise_label),
        retraining=retrain_rules_of(spec),
        deployed=spec.HasField("deployment"),
    )


def retrain_rules_of(spec: pb.PipelineSpec) -> RetrainRules | None:
    """How often drift may start a job; None where it starts none."""
    if not spec.HasField("retrain_on_drift"):
        return None
    wish = spec.retrain_on_drift
    return RetrainRules(
        from_duration(wish.cooldown) if wish.HasField("cooldown") else DEFAULT_COOLDOWN,
        wish.max_per_day or DEFAULT_MAX_PER_DAY,
    )


def _preparation(wish: pb.Preparation) -> Preparation:
    missing = wish.missing not in (pb.MISSING_RULE_UNSPECIFIED, pb.MISSING_RULE_REFUSE)
    return Preparation(
        feature=wish.feature,
        encoded=wish.encode not in (pb.ENCODING_UNSPECIFIED, pb.ENCODING_NUMBER),
        missing=_word(pb.MissingRule.Name(wish.missing), "MISSING_RULE_") if missing else "",
        constant=wish.constant,
        indicator=wish.indicator,
        clip_min=wish.clip_min if wish.HasField("clip_min") else None,
        clip_max=wish.clip_max if wish.HasField("clip_max") else None,
        log=wish.log,
        normalise=_normalisation(wish.normalise),
        resize=(wish.resize.height, wish.resize.width) if wish.HasField("resize") else None,
        per_channel=wish.per_channel,
        text_constant=wish.text_constant if wish.HasField("text_constant") else None,
    )


def _normalisation(value: pb.Normalisation.ValueType) -> str:
    return "none" if not value else _word(pb.Normalisation.Name(value), "NORMALISATION_")


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()


def resources_of(spec: pb.PipelineSpec) -> Resources:
    """What a pipeline's jobs ask for."""
    return job_resources(spec.resources.cpu, spec.resources.memory_bytes, spec.resources.gpu)


def deadline_of(spec: pb.PipelineSpec) -> timedelta | None:
    """Longest time for an attempt; none where the pipeline sets no limit."""
    return from_duration(spec.deadline) or None
