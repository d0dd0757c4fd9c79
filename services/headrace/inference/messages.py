"""Between the inference service's domain and its messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta

from headrace.api.inference.v1 import inference_pb2 as api
from headrace.api.registry.v1 import registry_pb2
from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.errors import NotFound
from headrace.inference.analysis_messages import analysis_from, analysis_message, judgement_message
from headrace.inference.domain.analysis import DEFAULT_ANALYSIS
from headrace.inference.domain.deployments import Deployment, ServedVersion, Tensor
from headrace.inference.domain.rollouts import Plan, Rollout
from headrace.inference.domain.scaling import (
    DEFAULT_IDLE,
    DEFAULT_QUEUE,
    EVERYWHERE,
    MAX_REPLICAS,
    Scaling,
)
from headrace.inference.domain.serving import DEFAULT_BATCH_SIZE, LogRules, Serving, ServingChange
from headrace.inference.domain.trials import Audience, Shadow
from headrace.inference.drift_messages import drift_spec
from headrace.inference.use_cases.ports import LoggedPrediction
from headrace.rpc.convert import from_duration, to_duration, to_timestamp
from headrace.rpc.model_formats import from_model_format


def plan_from(message: scheduling_pb2.RolloutSpec) -> Plan:
    """A rollout's plan; all at once where no step is named. Raises InvalidArgument/INVALID_ROLLOUT."""
    hold = from_duration(message.hold)
    analysis = analysis_from(message.analysis, hold) if message.HasField("analysis") else DEFAULT_ANALYSIS
    return Plan(
        tuple(message.steps) or (100,),
        hold,
        analysis,
        _shadow_from(message.shadow, hold) if message.HasField("shadow") else None,
        message.sticky.header,
        Audience(message.audience.header, frozenset(message.audience.values))
        if message.HasField("audience")
        else None,
    )


def plan_message(plan: Plan) -> scheduling_pb2.RolloutSpec:
    """A rollout's plan, defaults included."""
    message = scheduling_pb2.RolloutSpec(
        steps=plan.steps, hold=to_duration(plan.hold), analysis=analysis_message(plan.analysis)
    )
    if plan.shadow is not None:
        message.shadow.share = plan.shadow.share
        message.shadow.hold.CopyFrom(to_duration(plan.shadow.hold))
    if plan.sticky_header:
        message.sticky.header = plan.sticky_header
    if plan.audience is not None:
        message.audience.header = plan.audience.header
        message.audience.values.extend(sorted(plan.audience.values))
    return message


def serving_change_from(
    batching: scheduling_pb2.Batching | None,
    instances: int,
    log: scheduling_pb2.PredictionLogSpec | None = None,
) -> ServingChange:
    """What is said of a deployment's settings: of batches and the log nothing where there is no message."""
    rules = None if log is None else log_rules_from(log)
    if batching is None:
        return ServingChange(instances=instances or None, log=rules)
    wanted = Serving(
        max_batch_size=batching.max_batch_size or DEFAULT_BATCH_SIZE,
        max_queue_delay=from_duration(batching.max_queue_delay),
        preferred=tuple(batching.preferred),
    )
    return ServingChange(wanted, instances or None, rules)


def log_rules_from(message: scheduling_pb2.PredictionLogSpec) -> LogRules:
    """Which requests are logged."""
    return LogRules(message.share if message.HasField("share") else 1.0, message.dataset)


def log_message(rules: LogRules) -> scheduling_pb2.PredictionLogSpec:
    """Which requests are logged, defaults included."""
    return scheduling_pb2.PredictionLogSpec(share=rules.share, dataset=rules.dataset)


def batching_message(serving: Serving) -> scheduling_pb2.Batching:
    """How requests wait for each other."""
    return scheduling_pb2.Batching(
        max_batch_size=serving.max_batch_size,
        max_queue_delay=to_duration(serving.max_queue_delay),
        preferred=serving.preferred,
    )


def scaling_from(message: scheduling_pb2.Scaling) -> Scaling:
    """How much of a deployment there may be."""
    return Scaling(
        min_replicas=message.min_replicas if message.HasField("min_replicas") else 1,
        max_replicas=message.max_replicas or MAX_REPLICAS,
        max_instances=message.max_instances,
        idle=from_duration(message.idle) if message.HasField("idle") else DEFAULT_IDLE,
        queue=from_duration(message.queue) if message.HasField("queue") else DEFAULT_QUEUE,
    )


def scaling_message(scaling: Scaling) -> scheduling_pb2.Scaling:
    """How much of a deployment there may be, defaults included."""
    return scheduling_pb2.Scaling(
        min_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        max_instances=scaling.max_instances,
        idle=to_duration(scaling.idle),
        queue=to_duration(scaling.queue),
    )


def rollout_message(rollout: Rollout) -> api.Rollout:
    """A rollout."""
    return api.Rollout(
        id=rollout.id,
        deployment=rollout.deployment,
        from_version=rollout.from_version,
        to_version=rollout.to_version,
        state=api.RolloutState.Value(f"ROLLOUT_STATE_{rollout.state}"),
        step=rollout.step,
        weight=rollout.weight,
        message=rollout.message,
        create_time=to_timestamp(rollout.create_time),
        end_time=to_timestamp(rollout.end_time),
        paused=rollout.paused,
        judgement=judgement_message(rollout.judgement) if rollout.judgement else None,
        step_time=to_timestamp(rollout.step_time),
    )


def deployment_message(
    deployment: Deployment, versions: Sequence[ServedVersion], address: str
) -> api.Deployment:
    """A deployment; its signature is that of the version with the most traffic."""
    main = max(deployment.traffic, key=lambda version: deployment.traffic[version], default=0)
    signature = next((v.signature for v in versions if v.version == main), b"")
    return api.Deployment(
        name=deployment.name,
        model=deployment.model,
        rollout_spec=plan_message(deployment.plan),
        traffic=[
            api.VersionTraffic(version=version, weight=weight, loaded=version in deployment.loaded)
            for version, weight in sorted(deployment.traffic.items())
        ],
        rollout=rollout_message(deployment.rollout) if deployment.rollout else None,
        signature=registry_pb2.Signature.FromString(signature) if signature else None,
        ready=deployment.ready,
        message=deployment.message,
        address=address,
        create_time=to_timestamp(deployment.create_time),
        update_time=to_timestamp(deployment.update_time),
        drift_spec=drift_spec(deployment.drift),
        batching=batching_message(deployment.serving),
        instances=deployment.serving.instances,
        scaling=None if deployment.scaling == EVERYWHERE else scaling_message(deployment.scaling),
        # Of servers that there are none beyond, all.
        replicas=deployment.placed.replicas,
        log=log_message(deployment.serving.log),
    )


def served_version_from(message: registry_pb2.ModelVersion) -> ServedVersion:
    """A promoted version, as far as serving it needs.

    Raises InvalidArgument UNKNOWN_MODEL_FORMAT, NotFound ARTIFACT_MISSING where it has no model file.
    """
    form = from_model_format(message.format)
    artifact = next((artifact for artifact in message.artifacts if artifact.path == form.file), None)
    if artifact is None:
        raise NotFound("ARTIFACT_MISSING", f"version {message.version} has no {form.file}")
    signature = message.signature
    return ServedVersion(
        model=message.model,
        version=message.version,
        uri=artifact.uri,
        sha256=artifact.sha256,
        inputs=tuple(Tensor(t.name, t.datatype, tuple(t.shape)) for t in signature.inputs),
        outputs=tuple(Tensor(t.name, t.datatype, tuple(t.shape)) for t in signature.outputs),
        classes=tuple(signature.classes),
        signature=signature.SerializeToString(deterministic=True),
        traceparent=message.traceparent,
        dataset=message.lineage.dataset_version.dataset,
        format=form,
        dataset_version=message.lineage.dataset_version.version,
        features=tuple(signature.features),
        texts=tuple(signature.texts),
        size=artifact.size,
    )


def prediction_message(prediction: LoggedPrediction) -> api.Prediction:
    """An entry of the prediction log."""
    return api.Prediction(
        id=prediction.prediction_id,
        deployment=prediction.deployment,
        version=prediction.version,
        time=to_timestamp(prediction.time),
        seconds=prediction.seconds,
        inputs_json=json.dumps(prediction.inputs),
        outputs_json=json.dumps(prediction.outputs),
        label_json="" if prediction.label is None else json.dumps(prediction.label),
        traceparent=prediction.traceparent,
        shadow=prediction.shadow,
        segment=prediction.segment,
    )


def _shadow_from(message: scheduling_pb2.RolloutSpec.Shadow, hold: timedelta) -> Shadow:
    return Shadow(message.share or 100, from_duration(message.hold) if message.HasField("hold") else hold)
