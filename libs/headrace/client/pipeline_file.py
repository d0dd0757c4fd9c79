"""A pipeline's YAML file as an ApplyPipelineRequest.

apiVersion: headrace.dev/v1
kind: Pipeline
metadata: {name: breast-cancer}
spec:
  dataset:
    key: patient_id
    features:
      mean_radius: {type: float32, min: 0, nullable: true, unit: mm, description: of the nucleus}
      grade: {type: int8, nullable: true}
      site: {type: string, pattern: "^[A-Z]{3}$", default: UNK}
      image: {type: tensor, dtype: uint8, shape: [8, 8], format: png}     # or raw, the default, or jpeg
    label: {name: malignant, type: int8, classes: [0, 1]}
    attributes:                   # stored, and given to no model
      sex: {type: string, role: protected, values: [f, m]}
      taken: {type: timestamp, role: time, nullable: true}
      email: {type: string, role: personal, treatment: pseudonymise}   # or drop (the default), encrypt
    source: {topic: clinic.scans, format: json}       # a topic of your own; or avro, protobuf
    cut: {rows: 500, seconds: 30}       # or schedule: "0 2 * * *", a cron expression in UTC
    rejects: {alert_share: 0.05, window: 10m, hold_cut: true}
    quality: [{rule: null_share, field: site, max: 0.01, action: block}]
    retention: {rows: 90d, versions: 365d, rejected: 30d}     # what is not named is kept for ever
  preprocess:
    normalise: standard       # every feature; missing, indicator, clip and log may stand here, too
    features:
      mean_radius: {missing: median, indicator: true, clip: {min: 0, max: 40}, log: true, normalise: robust}
      grade: {encode: one_hot, missing: {constant: 0}}
      site: {encode: ordinal, missing: {constant: UNK}}
      image: {resize: [4, 4], normalise: standard, per_channel: true}
    split: {train: 0.7, validation: 0.15, test: 0.15, by: key}      # or time
  training:
    recipe: mlp
    parameters: {hidden: [64, 32]}
    resources: {cpu: 1, memory: 1Gi, gpu: 0}
    priority: 0
    deadline: 10m
    max_retries: 2
    seed: 1
  gates:
    - {metric: accuracy, split: test, min: 0.93}
  deployment:
    name: breast-cancer
    rollout: {steps: [10, 50, 100], hold: 5s}
    batching: {max_batch_size: 64, max_queue_delay: 2ms, preferred: [8, 16]}   # `headrace tune` finds them
    instances: 1
    scaling: {min_replicas: 0, max_replicas: 2, max_instances: 4, idle: 5m, queue: 20ms}
    log: {share: 1.0, dataset: breast-cancer-predictions}   # the default: all requests, and no dataset
    drift: {requests: 500, every: 1m, windows: 2, min_psi: 0.2, confidence: 0.99}     # the defaults
  retrain:
    on: [dataset_version]
    drift: {cooldown: 1h, max_per_day: 3}         # the defaults; without `drift` alerts start nothing
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
from headrace.client.drift_rules import drift_retraining, drift_spec
from headrace.client.quality_rules import quality_rule
from headrace.client.rollout_rules import rollout_spec
from headrace.client.yaml_reader import Document, Place
from headrace.errors import FieldViolation, HeadraceError, InvalidArgument, NotFound
from headrace.rpc.convert import to_duration

API_VERSION: Final = "headrace.dev/v1"
KIND: Final = "Pipeline"
DATASET_VERSION: Final = "dataset_version"

E = TypeVar("E", bound=int)


def _words(names: Iterable[tuple[str, E]], prefix: str) -> dict[str, E]:
    """An enum's names as a file has them; "unspecified" is none."""
    return {name.removeprefix(prefix).lower(): number for name, number in names if number}


TYPES: Final = _words(ingestion.FieldType.items(), "FIELD_TYPE_")
ROLES: Final = _words(ingestion.FieldRole.items(), "FIELD_ROLE_")
DTYPES: Final = _words(ingestion.TensorDtype.items(), "TENSOR_DTYPE_")
FORMATS: Final = _words(ingestion.TensorFormat.items(), "TENSOR_FORMAT_")
SOURCE_FORMATS: Final = _words(ingestion.SourceFormat.items(), "SOURCE_FORMAT_")
TREATMENTS: Final = _words(ingestion.FieldTreatment.items(), "FIELD_TREATMENT_")
NORMALISATIONS: Final = _words(scheduling.Normalisation.items(), "NORMALISATION_")
LABEL_NORMALISATIONS: Final = {name: NORMALISATIONS[name] for name in ("none", "standard")}
MISSING_RULES: Final = {
    "refuse": scheduling.MISSING_RULE_REFUSE,
    "mean": scheduling.MISSING_RULE_MEAN,
    "median": scheduling.MISSING_RULE_MEDIAN,
}
ENCODINGS: Final = _words(scheduling.Encoding.items(), "ENCODING_")
# What may be said of all features at once, and of each.
PREPARATIONS: Final = ("normalise", "missing", "indicator", "clip", "log")
DEFAULT_SPLIT: Final = scheduling.Split(train=0.7, validation=0.15, test=0.15)
SPLITS_BY: Final = {"key": ingestion.SPLIT_BY_KEY, "time": ingestion.SPLIT_BY_TIME}
SPLITS: Final = {name: name for name in ("train", "validation", "test")}


@dataclass(frozen=True, slots=True)
class PipelineFile:
    """A pipeline's file that was read: the request it means, and where each part of it stands."""

    name: str
    request: scheduling.ApplyPipelineRequest
    places: Mapping[str, Place]

    def explained(self, error: HeadraceError) -> HeadraceError:
        """Return a service's error about the request with each field's line and column in the file."""
        if len(error.fields) == 1:
            message = self._where(error.fields[0]) + error.message
            return type(error)(error.reason, message, fields=error.fields, metadata=error.metadata)
        fields = [
            FieldViolation(violation.field, self._where(violation) + violation.description)
            for violation in error.fields
        ]
        return type(error)(error.reason, error.message, fields=fields, metadata=error.metadata)

    def _where(self, violation: FieldViolation) -> str:
        place = self._place(violation.field)
        return f"{self.name}:{place.line}:{place.column}: " if place else ""

    def _place(self, field: str) -> Place | None:
        """Return the place of a field of the request, or of the nearest part around it."""
        path = self._path(field)
        while path and path not in self.places:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.places.get(path)

    def _path(self, field: str) -> str:
        """Return a request field's path in the file, which groups some of them otherwise."""
        schema = self.request.spec.dataset.schema
        for pattern, replacement in _MOVED:
            field = pattern.sub(replacement, field)
        match = _BY_INDEX.match(field)
        fields = schema.attributes if match and match[1] == "attributes" else schema.features
        if match and int(match[2]) < len(fields):
            field = f"spec.dataset.{match[1]}.{fields[int(match[2])].name}{field[match.end() :]}"
        match = _PREPARED.match(field)
        preparations = self.request.spec.training.preparations
        if match and int(match[1]) < len(preparations):
            field = f"spec.preprocess.features.{preparations[int(match[1])].feature}{field[match.end() :]}"
        return field


# A field of ApplyPipelineRequest -> where the file has it.
_MOVED: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^name$", "metadata.name"),
        (r"^spec\.dataset\.schema\b", "spec.dataset"),
        (r"^(spec\.dataset\.(?:features|attributes).*)\.allowed_values\b", r"\1.values"),
        (r"^(spec\.dataset\.label)\.allowed_values\b", r"\1.classes"),
        (r"^(spec\.dataset\.(?:features|attributes|label).*)\.default_value$", r"\1.default"),
        (r"^spec\.training\.(split|normalise|normalise_label)\b", r"spec.preprocess.\1"),
        (r"^spec\.resources\.memory_bytes$", "spec.training.resources.memory"),
        (r"^spec\.(resources|priority|deadline|max_retries)\b", r"spec.training.\1"),
        (r"^spec\.retrain_on_dataset_version$", "spec.retrain"),
        (r"^spec\.retrain_on_drift\b", "spec.retrain.drift"),
    )
)
_PREPARED: Final = re.compile(r"spec\.training\.preparations\[(\d+)\]")
_BY_INDEX: Final = re.compile(r"spec\.dataset\.(features|attributes)\[(\d+)\]")


def load(path: Path | str) -> scheduling.ApplyPipelineRequest:
    """Return the request that a pipeline's file means; raises as `read` does."""
    return read(path).request


def read(path: Path | str) -> PipelineFile:
    """Read a pipeline's file.

    Raises NotFound/FILE_NOT_FOUND, and InvalidArgument/INVALID_PIPELINE_FILE with the line and column of
    each mistake and what is allowed there. What only the services can judge, such as a recipe's
    parameters, they judge: `PipelineFile.explained` finds what they name in the file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise NotFound("FILE_NOT_FOUND", f"there is no file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument("INVALID_PIPELINE_FILE", f"{path} cannot be read: {error}") from error
    return parse(text, str(path))


def parse(text: str, name: str = "pipeline") -> PipelineFile:
    """Read a pipeline from text; `name` stands for the file in errors."""
    document = Document(text, name)
    keys = ("apiVersion", "kind", "metadata", "spec")
    top = document.mapping(document.root, keys, keys)
    document.choice(top.get("apiVersion"), {API_VERSION: None}, None)
    document.choice(top.get("kind"), {KIND: None}, None)
    metadata = document.mapping(top.get("metadata"), ("name",), ("name",))
    request = scheduling.ApplyPipelineRequest(
        name=document.text(metadata.get("name")), spec=_spec(document, top.get("spec"))
    )
    document.check()
    return PipelineFile(name, request, document.places)


def _spec(document: Document, place: Place | None) -> scheduling.PipelineSpec:
    keys = ("dataset", "preprocess", "training", "gates", "deployment", "retrain")
    entries = document.mapping(place, keys, ("dataset", "training"))
    spec = scheduling.PipelineSpec(
        dataset=_dataset(document, entries.get("dataset")),
        gates=[_gate(document, gate) for gate in document.items(entries.get("gates"))],
    )
    _retrain(document, entries.get("retrain"), spec)
    _training(document, entries.get("training"), spec)
    features = [feature.name for feature in spec.dataset.schema.features]
    _preprocess(document, entries.get("preprocess"), spec.training, features)
    if "deployment" in entries:
        spec.deployment.CopyFrom(_deployment(document, entries["deployment"]))
    return spec


def _dataset(document: Document, place: Place | None) -> scheduling.PipelineSpec.DatasetSpec:
    required = ("key", "features", "label")
    optional = ("attributes", "schema_version", "source", "cut", "rejects", "quality", "retention")
    entries = document.mapping(place, (*required, *optional), required)
    features = document.entries(entries["features"]) if "features" in entries else {}
    attributes = document.entries(entries["attributes"]) if "attributes" in entries else {}
    schema = ingestion.Schema(
        key=document.text(entries.get("key")),
        features=[_feature(document, name, feature) for name, feature in features.items()],
        attributes=[_attribute(document, name, attribute) for name, attribute in attributes.items()],
    )
    if "features" in entries and not features:
        document.fail(entries["features"], "must name at least one feature")
    if "label" in entries:
        schema.label.CopyFrom(_label(document, entries["label"]))
    dataset = scheduling.PipelineSpec.DatasetSpec(
        schema=schema, schema_version=document.integer(entries.get("schema_version"), bits=32)
    )
    if "source" in entries:
        dataset.source.CopyFrom(_source(document, entries["source"]))
    if "cut" in entries:
        cut = document.mapping(entries["cut"], ("rows", "seconds", "schedule"))
        dataset.cut.rows = document.integer(cut.get("rows"))
        dataset.cut.seconds = document.number(cut.get("seconds"))
        dataset.cut.schedule = document.text(cut.get("schedule"))
    if "rejects" in entries:
        dataset.rejects.CopyFrom(_rejects(document, entries["rejects"]))
    dataset.quality.extend(quality_rule(document, rule) for rule in document.items(entries.get("quality")))
    if "retention" in entries:
        dataset.retention.CopyFrom(_retention(document, entries["retention"]))
    return dataset


def _source(document: Document, place: Place) -> ingestion.SourceTopic:
    entries = document.mapping(place, ("topic", "format"), ("topic",))
    return ingestion.SourceTopic(
        topic=document.text(entries.get("topic")),
        format=document.choice(entries.get("format"), SOURCE_FORMATS, ingestion.SOURCE_FORMAT_JSON),
    )


def _rejects(document: Document, place: Place) -> ingestion.Rejects:
    entries = document.mapping(place, ("alert_share", "window", "hold_cut"))
    rejects = ingestion.Rejects(hold_cut=document.boolean(entries.get("hold_cut")))
    if "alert_share" in entries:
        rejects.alert_share = document.number(entries["alert_share"])
    if "window" in entries:
        rejects.window.CopyFrom(to_duration(document.duration(entries["window"])))
    return rejects


def _retention(document: Document, place: Place) -> ingestion.Retention:
    ages = document.mapping(place, ("rows", "versions", "rejected"))
    return ingestion.Retention(**{name: to_duration(document.duration(age)) for name, age in ages.items()})


def _feature(document: Document, name: str, place: Place) -> ingestion.Field:
    """Read `float32`, or {type: float32, nullable: true, min: 0, max: 1, values: [...], ...}."""
    if isinstance(place.node.value, str):
        return ingestion.Field(
            name=name, type=document.choice(place, TYPES, ingestion.FIELD_TYPE_UNSPECIFIED)
        )
    entries = document.mapping(place, (*_RULES, "values", "role"), ("type",))
    return _field(document, name, entries, entries.get("values"))


def _attribute(document: Document, name: str, place: Place) -> ingestion.Field:
    entries = document.mapping(place, (*_RULES, "values", "role", "treatment"), ("type", "role"))
    field = _field(document, name, entries, entries.get("values"))
    dropped = ingestion.FIELD_TREATMENT_UNSPECIFIED
    field.treatment = document.choice(entries.get("treatment"), TREATMENTS, dropped)
    return field


def _label(document: Document, place: Place) -> ingestion.Field:
    entries = document.mapping(place, ("name", *_RULES, "classes"), ("name", "type"))
    return _field(document, document.text(entries.get("name")), entries, entries.get("classes"))


_TENSOR: Final = ("dtype", "shape", "format")
_RULES: Final = (
    "type",
    "nullable",
    "min",
    "max",
    "pattern",
    "default",
    "unit",
    "description",
    *_TENSOR,
)


def _field(
    document: Document, name: str, entries: dict[str, Place], allowed: Place | None
) -> ingestion.Field:
    field = ingestion.Field(
        name=name,
        type=document.choice(entries.get("type"), TYPES, ingestion.FIELD_TYPE_UNSPECIFIED),
        nullable=document.boolean(entries.get("nullable")),
        allowed_values=[json.dumps(document.plain(value)) for value in document.items(allowed)],
        pattern=document.text(entries.get("pattern")),
        unit=document.text(entries.get("unit")),
        description=document.text(entries.get("description")),
        role=document.choice(entries.get("role"), ROLES, ingestion.FIELD_ROLE_UNSPECIFIED),
    )
    if not entries.keys().isdisjoint(_TENSOR):
        field.tensor.dtype = document.choice(entries.get("dtype"), DTYPES, ingestion.TENSOR_DTYPE_UNSPECIFIED)
        field.tensor.shape.extend(document.integer(size) for size in document.items(entries.get("shape")))
        field.tensor.format = document.choice(
            entries.get("format"), FORMATS, ingestion.TENSOR_FORMAT_UNSPECIFIED
        )
    if "default" in entries:
        field.default_value = json.dumps(document.plain(entries["default"]))
    if "min" in entries:
        field.min = document.number(entries["min"])
    if "max" in entries:
        field.max = document.number(entries["max"])
    return field


def _preprocess(
    document: Document, place: Place | None, training: scheduling.TrainingSpec, features: list[str]
) -> None:
    entries = document.mapping(place, (*PREPARATIONS, "features", "normalise_label", "split"))
    none = scheduling.NORMALISATION_NONE
    training.normalise = document.choice(entries.get("normalise"), NORMALISATIONS, none)
    training.normalise_label = document.choice(entries.get("normalise_label"), LABEL_NORMALISATIONS, none)
    training.preparations.extend(_preparations(document, entries, features))
    if "split" not in entries:
        training.split.CopyFrom(DEFAULT_SPLIT)
        return
    shares = document.mapping(entries["split"], (*SPLITS, "by"), ("train",))
    training.split.train = document.number(shares.get("train"))
    training.split.validation = document.number(shares.get("validation"))
    training.split.test = document.number(shares.get("test"))
    training.split.by = document.choice(shares.get("by"), SPLITS_BY, ingestion.SPLIT_BY_UNSPECIFIED)
    total = training.split.train + training.split.validation + training.split.test
    if shares and abs(total - 1) > 1e-6:
        document.fail(entries["split"], f"the shares must sum to 1, not to {total:g}")


def _preparations(
    document: Document, entries: dict[str, Place], features: list[str]
) -> list[scheduling.Preparation]:
    """Merge what is said of all features into what is said of each; an encoded one has its own alone."""
    common = {name: place for name, place in entries.items() if name in PREPARATIONS}
    own = document.entries(entries["features"]) if "features" in entries else {}
    for name in own.keys() - set(features):
        document.fail(own[name], f"the dataset has no feature {name!r}")
    if common.keys() <= {"normalise"}:
        # Said by `normalise` itself.
        features = [name for name in features if name in own]
    return [_preparation(document, name, common, own.get(name)) for name in features]


def _preparation(
    document: Document, feature: str, common: dict[str, Place], place: Place | None
) -> scheduling.Preparation:
    entries = document.mapping(place, (*PREPARATIONS, "encode", "resize", "per_channel"))
    encode = document.choice(entries.get("encode"), ENCODINGS, scheduling.ENCODING_NUMBER)
    if encode == scheduling.ENCODING_NUMBER:
        entries = {**common, **entries}
    preparation = scheduling.Preparation(
        feature=feature,
        indicator=document.boolean(entries.get("indicator")),
        log=document.boolean(entries.get("log")),
        normalise=document.choice(entries.get("normalise"), NORMALISATIONS, scheduling.NORMALISATION_NONE),
        encode=encode,
    )
    if "per_channel" in entries:
        preparation.per_channel = document.boolean(entries["per_channel"])
    if "resize" in entries:
        size = [document.integer(number, bits=32) for number in document.items(entries["resize"])]
        if len(size) == 2:
            preparation.resize.height, preparation.resize.width = size
        else:
            document.fail(entries["resize"], "must be [height, width]")
    clip = document.mapping(entries.get("clip"), ("min", "max"))
    if "min" in clip:
        preparation.clip_min = document.number(clip["min"])
    if "max" in clip:
        preparation.clip_max = document.number(clip["max"])
    missing = entries.get("missing")
    if missing is not None and not isinstance(missing.node.value, str):
        preparation.missing = scheduling.MISSING_RULE_CONSTANT
        constant = document.mapping(missing, ("constant",), ("constant",)).get("constant")
        text = document.plain(constant) if constant else None
        if isinstance(text, str):
            preparation.text_constant = text
        else:
            preparation.constant = document.number(constant)
    else:
        preparation.missing = document.choice(missing, MISSING_RULES, scheduling.MISSING_RULE_REFUSE)
    return preparation


def _training(document: Document, place: Place | None, spec: scheduling.PipelineSpec) -> None:
    keys = ("recipe", "parameters", "resources", "queue", "priority", "deadline", "max_retries", "seed")
    entries = document.mapping(place, keys, ("recipe",))
    spec.training.recipe = document.text(entries.get("recipe"))
    spec.training.seed = document.integer(entries.get("seed"))
    if "parameters" in entries:
        for name, value in document.entries(entries["parameters"]).items():
            spec.training.parameters[name] = document.plain(value)
    resources = document.mapping(entries.get("resources"), ("cpu", "memory", "gpu"))
    spec.resources.cpu = document.number(resources.get("cpu"), 1.0)
    spec.resources.memory_bytes = document.memory(resources.get("memory"))
    spec.resources.gpu = document.integer(resources.get("gpu"), bits=32)
    document.choice(entries.get("queue"), {"default": None}, None)
    spec.priority = document.integer(entries.get("priority"), bits=32)
    if "deadline" in entries:
        spec.deadline.CopyFrom(to_duration(document.duration(entries["deadline"])))
    spec.max_retries = document.integer(entries.get("max_retries"), 2, bits=32)


def _gate(document: Document, place: Place) -> scheduling.Gate:
    entries = document.mapping(place, ("metric", "split", "min", "max"), ("metric",))
    gate = scheduling.Gate(
        metric=document.text(entries.get("metric")),
        split=document.choice(entries.get("split"), SPLITS, "test"),
    )
    if "min" in entries:
        gate.min = document.number(entries["min"])
    if "max" in entries:
        gate.max = document.number(entries["max"])
    if "min" not in entries and "max" not in entries:
        document.fail(place, "a gate needs min, max or both")
    return gate


def _deployment(document: Document, place: Place) -> scheduling.PipelineSpec.DeploymentSpec:
    names = ("name", "rollout", "batching", "instances", "scaling", "log", "drift")
    entries = document.mapping(place, names, ("name",))
    deployment = scheduling.PipelineSpec.DeploymentSpec(name=document.text(entries.get("name")))
    if "batching" in entries:
        deployment.batching.CopyFrom(_batching(document, entries["batching"]))
    deployment.instances = document.integer(entries.get("instances"), bits=32)
    if "instances" in entries and deployment.instances < 1:
        document.fail(entries["instances"], "must be at least 1")
    if "scaling" in entries:
        deployment.scaling.CopyFrom(_scaling(document, entries["scaling"]))
    if "log" in entries:
        deployment.log.CopyFrom(_prediction_log(document, entries["log"]))
    if (rollout := rollout_spec(document, entries.get("rollout"))) is not None:
        deployment.rollout.CopyFrom(rollout)
    if "drift" in entries:
        deployment.drift.CopyFrom(drift_spec(document, entries["drift"]))
    return deployment


def _batching(document: Document, place: Place) -> scheduling.Batching:
    entries = document.mapping(place, ("max_batch_size", "max_queue_delay", "preferred"))
    return scheduling.Batching(
        max_batch_size=document.integer(entries.get("max_batch_size"), bits=32),
        max_queue_delay=to_duration(document.duration(entries.get("max_queue_delay"))),
        preferred=[document.integer(size, bits=32) for size in document.items(entries.get("preferred"))],
    )


def _scaling(document: Document, place: Place) -> scheduling.Scaling:
    names = ("min_replicas", "max_replicas", "max_instances", "idle", "queue")
    entries = document.mapping(place, names)
    scaling = scheduling.Scaling(
        max_replicas=document.integer(entries.get("max_replicas"), bits=32),
        max_instances=document.integer(entries.get("max_instances"), bits=32),
    )
    if "min_replicas" in entries:
        scaling.min_replicas = document.integer(entries["min_replicas"], bits=32)
    if "idle" in entries:
        scaling.idle.CopyFrom(to_duration(document.duration(entries["idle"])))
    if "queue" in entries:
        scaling.queue.CopyFrom(to_duration(document.duration(entries["queue"])))
    return scaling


def _prediction_log(document: Document, place: Place) -> scheduling.PredictionLogSpec:
    entries = document.mapping(place, ("share", "dataset"))
    log = scheduling.PredictionLogSpec(dataset=document.text(entries.get("dataset")))
    if "share" in entries:
        log.share = document.number(entries["share"])
    return log


def _retrain(document: Document, place: Place | None, spec: scheduling.PipelineSpec) -> None:
    entries = document.mapping(place, ("on", "drift"))
    triggers = [
        document.choice(trigger, {DATASET_VERSION: True}, default=False)
        for trigger in document.items(entries.get("on"))
    ]
    spec.retrain_on_dataset_version = any(triggers)
    if "drift" in entries:
        spec.retrain_on_drift.CopyFrom(drift_retraining(document, entries["drift"]))
