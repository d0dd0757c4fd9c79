from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from google.protobuf import json_format

from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.api.ingestion.v1 import quality_pb2 as quality
from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
from headrace.client import pipeline_file
from headrace.errors import FieldViolation, InvalidArgument, NotFound
from headrace.rpc.convert import to_duration

Rule = quality.QualityRule

COMPLETE = """\
apiVersion: headrace.dev/v1
kind: Pipeline
metadata: {name: breast-cancer}
spec:
  dataset:                      # a topic's events become rows
    key: patient_id
    features:
      mean_radius: {type: float32, min: 0, max: 1e3}
      site: string
      grade: {type: int16, nullable: true, values: [1, 2, 3]}
    label: {name: malignant, type: int8, classes: [0, 1]}
    cut: {rows: 500, seconds: 30}
    quality: [{rule: null_share, field: grade, max: 0.01, action: block}]
  preprocess: {normalise: standard, split: {train: 0.7, validation: 0.15, test: 0.15}}
  training:
    recipe: mlp
    parameters: {hidden: [64, 32], activation: relu, learning_rate: 1e-2, early: true, on: no, note: null}
    resources: {cpu: 1.5, memory: 1Gi, gpu: 1}
    queue: default
    priority: 3
    deadline: 1h30m
    max_retries: 4
    seed: 7
  gates:
    - {metric: accuracy, split: test, min: 0.93}
    - {metric: loss, split: validation, max: 1}
  deployment: {name: breast-cancer, rollout: {steps: [10, 50, 100], hold: 500ms}}
  retrain: {on: [dataset_version]}
"""

SMALL = """\
apiVersion: headrace.dev/v1
kind: Pipeline
metadata: {name: small}
spec:
  dataset:
    key: id
    features: {x: float64}
    label: {name: y, type: float64}
  training: {recipe: mlp}
"""


def test_what_rejected_events_lead_to_arrives_as_far_as_it_is_said() -> None:
    def rejects(text: str) -> ingestion.Rejects:
        read = pipeline_file.parse(SMALL.replace("    key: id\n", f"    key: id\n    rejects: {text}\n"))
        return read.request.spec.dataset.rejects

    said = ingestion.Rejects(alert_share=0.1, window=to_duration(timedelta(hours=1)), hold_cut=True)
    assert rejects("{alert_share: 0.1, window: 1h, hold_cut: true}") == said
    assert rejects("{alert_share: 0}") == ingestion.Rejects(alert_share=0)
    assert not pipeline_file.parse(SMALL).request.spec.dataset.HasField("rejects")
    with pytest.raises(InvalidArgument, match="unknown key 'alert'"):
        rejects("{alert: 0.1}")


def test_how_long_things_are_kept_arrives_as_far_as_it_is_said() -> None:
    def retention(text: str) -> ingestion.Retention:
        read = pipeline_file.parse(SMALL.replace("    key: id\n", f"    key: id\n    retention: {text}\n"))
        return read.request.spec.dataset.retention

    day = timedelta(days=1)
    assert retention("{rows: 90d, versions: 365d, rejected: 30d12h}") == ingestion.Retention(
        rows=to_duration(90 * day), versions=to_duration(365 * day), rejected=to_duration(30.5 * day)
    )
    assert retention("{versions: 1h}") == ingestion.Retention(versions=to_duration(day / 24))
    assert not pipeline_file.parse(SMALL).request.spec.dataset.HasField("retention")
    with pytest.raises(InvalidArgument, match="unknown key 'row'"):
        retention("{row: 1d}")


def test_the_version_that_a_schema_is_declared_as_arrives() -> None:
    declared = SMALL.replace("    key: id\n", "    key: id\n    schema_version: 3\n")
    assert pipeline_file.parse(declared).request.spec.dataset.schema_version == 3
    assert pipeline_file.parse(SMALL).request.spec.dataset.schema_version == 0


def test_a_topic_of_the_datasets_own_arrives_with_what_its_values_are() -> None:
    def source(text: str) -> ingestion.SourceTopic:
        read = pipeline_file.parse(SMALL.replace("    key: id\n", f"    key: id\n    source: {text}\n"))
        return read.request.spec.dataset.source

    plain = ingestion.SourceTopic(topic="clinic.scans", format=ingestion.SOURCE_FORMAT_JSON)
    assert source("{topic: clinic.scans}") == plain
    assert source("{topic: clinic.scans, format: avro}").format == ingestion.SOURCE_FORMAT_AVRO
    assert not pipeline_file.parse(SMALL).request.spec.dataset.HasField("source")
    with_source = SMALL.replace("    key: id\n", "    key: id\n    source: {topic: clinic.scans}\n")
    line = next(n for n, text in enumerate(with_source.splitlines(), 1) if "source:" in text)
    missing = FieldViolation("spec.dataset.source.topic", "is no topic of the broker's")
    refused = InvalidArgument("SOURCE_MISSING", "there is no topic clinic.scans", fields=[missing])
    explained = pipeline_file.parse(with_source, "p.yaml").explained(refused)
    assert explained.message == f"p.yaml:{line}:14: there is no topic clinic.scans"
    with pytest.raises(InvalidArgument, match="must be one of json, avro, protobuf"):
        source("{topic: clinic.scans, format: csv}")
    with pytest.raises(InvalidArgument, match="topic"):
        source("{format: json}")


def test_every_part_of_a_complete_file_arrives() -> None:
    request = pipeline_file.parse(COMPLETE).request
    spec = request.spec
    schema = spec.dataset.schema
    assert request.name == "breast-cancer"
    assert schema.key == "patient_id"
    assert list(schema.features) == [
        ingestion.Field(name="mean_radius", type=ingestion.FIELD_TYPE_FLOAT32, min=0, max=1000),
        ingestion.Field(name="site", type=ingestion.FIELD_TYPE_STRING),
        ingestion.Field(
            name="grade", type=ingestion.FIELD_TYPE_INT16, nullable=True, allowed_values=["1", "2", "3"]
        ),
    ]
    assert schema.label == ingestion.Field(
        name="malignant", type=ingestion.FIELD_TYPE_INT8, allowed_values=["0", "1"]
    )
    assert (spec.dataset.cut.rows, spec.dataset.cut.seconds) == (500, 30)
    assert list(spec.dataset.quality) == [
        Rule(null_share=Rule.NullShare(field="grade", max=0.01), action=quality.QUALITY_ACTION_BLOCK)
    ]
    assert spec.training.recipe == "mlp"
    assert json_format.MessageToDict(spec.training.parameters) == {
        "hidden": [64, 32],
        "activation": "relu",
        "learning_rate": 0.01,
        "early": True,
        "on": "no",
        "note": None,
    }
    assert spec.training.normalise == scheduling.NORMALISATION_STANDARD
    assert spec.training.split.validation == 0.15
    assert spec.training.seed == 7
    assert spec.resources == scheduling.Resources(cpu=1.5, memory_bytes=2**30, gpu=1)
    assert (spec.priority, spec.max_retries) == (3, 4)
    assert spec.deadline.ToTimedelta() == timedelta(hours=1, minutes=30)
    assert spec.gates[0] == scheduling.Gate(metric="accuracy", split="test", min=0.93)
    assert spec.gates[1] == scheduling.Gate(metric="loss", split="validation", max=1)
    assert list(spec.deployment.rollout.steps) == [10, 50, 100]
    assert spec.deployment.rollout.hold.ToTimedelta() == timedelta(milliseconds=500)
    assert spec.retrain_on_dataset_version


def test_a_cut_may_be_scheduled() -> None:
    text = COMPLETE.replace("cut: {rows: 500, seconds: 30}", 'cut: {schedule: "0 2 * * *"}')
    assert text != COMPLETE
    cut = pipeline_file.parse(text).request.spec.dataset.cut
    assert cut == ingestion.Cut(schedule="0 2 * * *")


def test_a_feature_may_be_a_tensor() -> None:
    text = COMPLETE.replace(
        "site: string", "site: {type: tensor, dtype: uint8, shape: [8, 8, 3], format: jpeg}"
    )
    _, site, _ = pipeline_file.parse(text).request.spec.dataset.schema.features
    assert site == ingestion.Field(
        name="site",
        type=ingestion.FIELD_TYPE_TENSOR,
        tensor=ingestion.TensorType(
            dtype=ingestion.TENSOR_DTYPE_UINT8, shape=[8, 8, 3], format=ingestion.TENSOR_FORMAT_JPEG
        ),
    )
    error = broken(("site: string", "site: {type: tensor, dtype: uint9, shape: [8]}"), COMPLETE)
    assert "must be one of uint8, int8" in error.message


def test_a_split_may_be_by_time() -> None:
    text = COMPLETE.replace("test: 0.15}", "test: 0.15, by: time}")
    training = pipeline_file.parse(text).request.spec.training
    assert training.split == scheduling.Split(
        train=0.7, validation=0.15, test=0.15, by=ingestion.SPLIT_BY_TIME
    )


RULES = SMALL.replace(
    "    label:",
    """\
    attributes:
      sex: {type: string, role: protected, values: [f, m], pattern: "^[fm]$", default: f}
      taken: {type: timestamp, role: time, nullable: true, description: when, unit: UTC}
    label:""",
)


def test_attributes_and_their_rules_arrive() -> None:
    schema = pipeline_file.parse(RULES).request.spec.dataset.schema
    assert list(schema.attributes) == [
        ingestion.Field(
            name="sex",
            type=ingestion.FIELD_TYPE_STRING,
            role=ingestion.FIELD_ROLE_PROTECTED,
            allowed_values=['"f"', '"m"'],
            pattern="^[fm]$",
            default_value='"f"',
        ),
        ingestion.Field(
            name="taken",
            type=ingestion.FIELD_TYPE_TIMESTAMP,
            role=ingestion.FIELD_ROLE_TIME,
            nullable=True,
            description="when",
            unit="UTC",
        ),
    ]


@pytest.mark.parametrize(
    ("field", "place"),
    [
        ("spec.dataset.schema.attributes[0].default_value", "9:79"),
        ("spec.dataset.schema.attributes.sex.pattern", "9:60"),
        ("spec.dataset.schema.attributes[1].role", "10:32"),
    ],
)
def test_what_a_service_finds_wrong_in_attributes_is_found_in_the_file(field: str, place: str) -> None:
    error = InvalidArgument("INVALID_SCHEMA", "wrong", fields=[FieldViolation(field, "no")])
    assert pipeline_file.parse(RULES, "p.yaml").explained(error).message == f"p.yaml:{place}: wrong"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("rule: range, field: x, min: 0", Rule(range=Rule.Range(field="x", min=0))),
        ("rule: range, field: x, max: 2", Rule(range=Rule.Range(field="x", max=2))),
        ("rule: class_balance, min_share: 0.2", Rule(class_balance=Rule.ClassBalance(min_share=0.2))),
        ("rule: drift, max: 0.2", Rule(drift=Rule.Drift(method=quality.DRIFT_METHOD_PSI, max=0.2))),
        (
            "rule: drift, field: x, against: tag:golden, method: ks, max: 0.2",
            Rule(drift=Rule.Drift(field="x", tag="golden", method=quality.DRIFT_METHOD_KS, max=0.2)),
        ),
        (
            "rule: drift, against: previous, max: 0.2",
            Rule(drift=Rule.Drift(method=quality.DRIFT_METHOD_PSI, max=0.2)),
        ),
    ],
)
def test_each_quality_rule_is_read(text: str, rule: Rule) -> None:
    rule.action = quality.QUALITY_ACTION_WARN
    file = with_quality(f"{{{text}, action: warn}}")
    assert list(pipeline_file.parse(file).request.spec.dataset.quality) == [rule]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{rule: nulls, max: 1, action: warn}", "quality[0].rule: must be one of null_share, range,"),
        ("{field: x, max: 1, action: warn}", "quality[0]: the key 'rule' is missing"),
        ("{rule: null_share, field: x, max: 1}", "quality[0]: the key 'action' is missing"),
        ("{rule: null_share, field: x, min: 1, action: warn}", "quality[0].min: unknown key 'min'"),
        ("{rule: range, field: x, action: stop}", "quality[0].action: must be one of warn, block"),
        (
            "{rule: drift, against: golden, max: 1, action: warn}",
            "quality[0].against: must be previous or tag:NAME, not 'golden'",
        ),
        ("rule", "quality: must be a list"),
    ],
)
def test_a_mistake_in_a_quality_rule_is_named(text: str, message: str) -> None:
    file = with_quality(text) if text.startswith("{") else with_quality("").replace("[]", text)
    with pytest.raises(InvalidArgument) as caught:
        pipeline_file.parse(file)
    assert message in caught.value.message


def with_quality(rules: str) -> str:
    return SMALL.replace("  training:", f"    quality: [{rules}]\n  training:", 1)


PREPARED = COMPLETE.replace(
    "  preprocess: {normalise: standard, ",
    """\
  preprocess:
    normalise: min_max
    missing: median
    features:
      mean_radius: {missing: {constant: -1}, indicator: true, clip: {min: 0, max: 40.5}, log: true}
      grade: {encode: one_hot}
    """,
).replace("split: {train: 0.7, validation: 0.15, test: 0.15}}", "split: {train: 1}")


def test_what_is_said_of_all_features_holds_where_one_says_nothing_else() -> None:
    training = pipeline_file.parse(PREPARED).request.spec.training
    assert training.normalise == scheduling.NORMALISATION_MIN_MAX
    assert list(training.preparations) == [
        scheduling.Preparation(
            feature="mean_radius",
            missing=scheduling.MISSING_RULE_CONSTANT,
            constant=-1,
            indicator=True,
            clip_min=0,
            clip_max=40.5,
            log=True,
            normalise=scheduling.NORMALISATION_MIN_MAX,
            encode=scheduling.ENCODING_NUMBER,
        ),
        scheduling.Preparation(
            feature="site",
            missing=scheduling.MISSING_RULE_MEDIAN,
            normalise=scheduling.NORMALISATION_MIN_MAX,
            encode=scheduling.ENCODING_NUMBER,
        ),
        # What is encoded is no number: what numbers need is not for it.
        scheduling.Preparation(
            feature="grade",
            missing=scheduling.MISSING_RULE_REFUSE,
            normalise=scheduling.NORMALISATION_NONE,
            encode=scheduling.ENCODING_ONE_HOT,
        ),
    ]


@pytest.mark.parametrize("text", ["UNK", "", "7"])
def test_a_text_in_quotes_may_stand_for_a_missing_one(text: str) -> None:
    changed = PREPARED.replace("{encode: one_hot}", f'{{encode: one_hot, missing: {{constant: "{text}"}}}}')
    wish = pipeline_file.parse(changed).request.spec.training.preparations[2]
    assert wish.missing == scheduling.MISSING_RULE_CONSTANT
    assert (wish.HasField("text_constant"), wish.text_constant, wish.constant) == (True, text, 0)


RESIZED = COMPLETE.replace(
    "  preprocess: {normalise: standard, ",
    """\
  preprocess:
    features:
      grade: {resize: [4, 6], normalise: standard, per_channel: true}
    """,
).replace("split: {train: 0.7, validation: 0.15, test: 0.15}}", "split: {train: 1}")


def test_an_image_may_get_another_size() -> None:
    [wish] = pipeline_file.parse(RESIZED).request.spec.training.preparations
    assert (wish.resize.height, wish.resize.width, wish.per_channel) == (4, 6, True)
    for size in ("[4]", "[4, 6, 3]"):
        assert "resize: must be [height, width]" in str(broken(("[4, 6]", size), RESIZED))
    assert "must be between -2147483648" in str(broken(("[4, 6]", "[4, 4294967296]"), RESIZED))


def test_normalisation_alone_needs_no_preparations() -> None:
    assert not pipeline_file.parse(COMPLETE).request.spec.training.preparations


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("grade: {enc", "grad: {enc"), "spec.preprocess.features.grad: the dataset has no feature 'grad'"),
        (("one_hot", "one-hot"), "spec.preprocess.features.grade.encode: must be one of number, one_hot"),
        (("missing: median", "missing: mode"), "spec.preprocess.missing: must be one of refuse, mean"),
        (("normalise: min_max", "normalise: max"), "spec.preprocess.normalise: must be one of none,"),
        (("constant: -1", "value: -1"), "unknown key 'value'"),
        (("missing: median", "normalise_label: robust"), "normalise_label: must be one of none, standard"),
    ],
)
def test_a_mistake_in_a_preparation_is_named_once(change: tuple[str, str], message: str) -> None:
    error = broken(change, PREPARED)
    assert message in str(error)
    assert len({field.description for field in error.fields}) == len(error.fields)


def test_a_refused_preparation_is_found_in_the_file() -> None:
    file = pipeline_file.parse(PREPARED, "p.yaml")
    line = next(n for n, text in enumerate(PREPARED.splitlines(), 1) if "grade: {encode" in text)
    field = "spec.training.preparations[2].encode"
    error = file.explained(InvalidArgument("INVALID_PIPELINE", "no", fields=[FieldViolation(field, "no")]))
    assert str(error) == f"p.yaml:{line}:15: no"


def test_what_a_small_file_leaves_out_has_its_default() -> None:
    spec = pipeline_file.parse(SMALL).request.spec
    assert spec.resources.cpu == 1
    assert spec.max_retries == 2
    assert not spec.HasField("deployment")
    assert not spec.HasField("deadline")
    assert spec.training.split == pipeline_file.DEFAULT_SPLIT
    assert not spec.retrain_on_dataset_version


def broken(change: tuple[str, str], text: str = SMALL) -> InvalidArgument:
    assert change[0] in text
    with pytest.raises(InvalidArgument) as caught:
        pipeline_file.parse(text.replace(*change), "p.yaml")
    assert caught.value.reason == "INVALID_PIPELINE_FILE"
    return caught.value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("    label:", "    lable:"),
            "p.yaml:8:5: spec.dataset.lable: unknown key 'lable'; did you mean 'label'? (allowed: ",
        ),
        (
            ("x: float64", "x: {type: float64, role: colour}"),
            "role: must be one of protected, personal, ignored",
        ),
        (("    label:", "    attributes: {sex: {type: string}}\n    label:"), "the key 'role' is missing"),
        (("x: float64", "x: float46"), "p.yaml:7:19: spec.dataset.features.x: must be one of bool, int8,"),
        (
            ("training: {recipe: mlp}", "training: {}"),
            "p.yaml:9:13: spec.training: the key 'recipe' is",
        ),
        (
            ("headrace.dev/v1", "headrace.dev/v2"),
            "p.yaml:1:13: apiVersion: must be one of headrace.dev/v1",
        ),
        (("{x: float64}", "[x]"), "p.yaml:7:15: spec.dataset.features: must be a mapping"),
        (("{x: float64}", "{}"), "must name at least one feature"),
        (("{x: float64}", "{x: float64, x: bool}"), "the key 'x' stands here twice"),
        (
            ("recipe: mlp", "recipe: mlp, seed: many"),
            "seed: must be a whole number, not 'many'",
        ),
        (("recipe: mlp", "recipe: mlp, deadline: soon"), "must be a length of time such as 90s"),
        (("recipe: mlp", "recipe: mlp, deadline: -5"), "must be a length of time such as 90s"),
        (("recipe: mlp", "recipe: mlp, resources: {memory: 1Gb}"), "must be an amount of memory such as"),
        (("recipe: mlp", "recipe: mlp, queue: fast"), "spec.training.queue: must be one of default"),
        (("recipe: mlp", "recipe: [mlp]"), "spec.training.recipe: must be text, not a list"),
        (("name: small", "name:"), "metadata.name: must be text, not nothing"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_what_is_allowed(change: tuple[str, str], message: str) -> None:
    assert message in broken(change).message


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (f"seed: {1 << 63}", f"seed: must be between {-(1 << 63)} and {(1 << 63) - 1}"),
        (f"seed: {'9' * 5000}", "seed: is too large a number"),
        (f"priority: {1 << 31}", f"priority: must be between {-(1 << 31)} and {(1 << 31) - 1}"),
        (f"max_retries: -{(1 << 31) + 1}", "max_retries: must be between"),
        ("resources: {gpu: 99999999999}", "resources.gpu: must be between"),
        (f"resources: {{cpu: {'9' * 400}}}", "resources.cpu: is too large a number"),
        (
            "resources: {memory: 99999999999Ti}",
            "resources.memory: must be less than 9223372036854775808 bytes",
        ),
        (f"resources: {{memory: {'9' * 400}}}", "resources.memory: must be less than"),
        ("deadline: 99999999999999d", "deadline: must be at most 315576000000 s"),
        ('parameters: {a: "\\ud800"}', "p.yaml:9:43: holds half a character"),
        ('parameters: {"\\ud800": 1}', "p.yaml:9:40: holds half a character"),
    ],
)
def test_what_no_field_can_hold_is_named_with_its_place(training: str, message: str) -> None:
    error = broken(("recipe: mlp", f"recipe: mlp, {training}"))
    assert error.message.startswith("p.yaml:9:")
    assert message in error.message


def test_the_largest_that_fields_can_hold_are_taken() -> None:
    largest = f"seed: {-(1 << 63)}, priority: {(1 << 31) - 1}, deadline: 315576000000s"
    largest += ", resources: {memory: 8388607Ti}"
    spec = pipeline_file.parse(SMALL.replace("recipe: mlp", f"recipe: mlp, {largest}")).request.spec
    assert (spec.training.seed, spec.priority) == (-(1 << 63), (1 << 31) - 1)
    assert (spec.deadline.seconds, spec.resources.memory_bytes) == (315576000000, 8388607 << 40)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("test: 0.15", "test: 0.25"), "the shares must sum to 1, not to 1.1"),
        (("[10, 50, 100]", "[50, 10, 100]"), "must be rising percentages of which the last is 100"),
        (("[10, 50, 100]", "[10, 50]"), "must be rising percentages of which the last is 100"),
        (("test, min: 0.93", "test"), "spec.gates[0]: a gate needs min, max or both"),
        (("split: test,", "split: holdout,"), "spec.gates[0].split: must be one of train, validation, test"),
        (("[dataset_version]", "[full_moon]"), "spec.retrain.on[0]: must be one of dataset_version"),
        (("hold: 500ms", "hodl: 500ms"), "unknown key 'hodl'; did you mean 'hold'?"),
    ],
)
def test_a_mistake_deep_inside_is_named_too(change: tuple[str, str], message: str) -> None:
    assert message in broken(change, COMPLETE).message


def test_all_mistakes_are_found_at_once() -> None:
    error = broken(("key: id", "kez: id\n    cut: {rows: few}"))
    assert [field.field for field in error.fields] == [
        "spec.dataset.kez",
        "spec.dataset",
        "spec.dataset.cut.rows",
    ]
    assert error.fields[2].description == "7:17: must be a whole number, not 'few'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "p.yaml:1:6: not YAML: "),
        ("", "p.yaml: holds 0 documents"),
        ("a: 1\n---\nb: 2\n", "p.yaml: holds 2 documents"),
        ("- a\n", "p.yaml:1:1: must be a mapping of keys to values, not a list"),
        ("a: \x00", "p.yaml: not YAML"),
    ],
)
def test_what_is_no_document_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        pipeline_file.parse(text, "p.yaml")
    assert message in caught.value.message


def test_an_alias_to_itself_is_refused() -> None:
    error = broken(("recipe: mlp", "recipe: mlp, parameters: {a: &a [*a]}"))
    assert "nested too deeply" in error.message


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no file"):
        pipeline_file.load(tmp_path / "nothing.yaml")


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text(SMALL)
    assert pipeline_file.load(file).name == "small"


@pytest.mark.parametrize(
    ("field", "place"),
    [
        ("name", "3:12"),
        ("spec.training.parameters.activation", "17:36"),
        ("spec.training.recipe", "16:5"),
        ("spec.training.split.test", "14:75"),
        ("spec.dataset.schema.features.mean_radius.min", "8:36"),
        ("spec.dataset.schema.features[0].min", "8:36"),
        ("spec.dataset.schema.features[2].allowed_values[1]", "10:56"),
        ("spec.dataset.schema.label.allowed_values[1]", "11:55"),
        ("spec.resources.memory_bytes", "18:27"),
        ("spec.max_retries", "22:5"),
        ("spec.gates[1].max", "26:41"),
        ("spec.deployment.rollout.steps[1]", "27:59"),
        ("spec.dataset.quality[0].field", "13:34"),
        # Not in the file: the nearest that is.
        ("spec.gates[0].max", "25:7"),
        ("spec.dataset.schema.features[9].min", "7:5"),
    ],
)
def test_what_a_service_finds_wrong_is_found_in_the_file(field: str, place: str) -> None:
    read = pipeline_file.parse(COMPLETE, "p.yaml")
    error = InvalidArgument("INVALID_PIPELINE", "wrong", fields=[FieldViolation(field, "too small")])
    explained = read.explained(error)
    assert isinstance(explained, InvalidArgument)
    assert explained.message == f"p.yaml:{place}: wrong"


def test_several_complaints_are_each_found_in_the_file() -> None:
    violations = [FieldViolation("name", "taken"), FieldViolation("elsewhere", "odd")]
    error = InvalidArgument("INVALID_PIPELINE", "wrong", fields=violations)
    explained = pipeline_file.parse(COMPLETE, "p.yaml").explained(error)
    assert [violation.description for violation in explained.fields] == ["p.yaml:3:12: taken", "odd"]


def test_how_a_deployment_is_served_and_scaled() -> None:
    deployment = "  deployment: {name: breast-cancer, "
    text = COMPLETE.replace(
        deployment,
        deployment
        + "batching: {max_batch_size: 8, max_queue_delay: 2ms, preferred: [4]}, instances: 2, "
        + "scaling: {min_replicas: 0, max_replicas: 3, max_instances: 4, idle: 1m, queue: 5ms}, "
        + "log: {share: 0.1, dataset: asked}, ",
    )
    spec = pipeline_file.parse(text).request.spec.deployment
    assert spec.batching == scheduling.Batching(
        max_batch_size=8, max_queue_delay=to_duration(timedelta(milliseconds=2)), preferred=[4]
    )
    assert spec.instances == 2
    assert spec.scaling == scheduling.Scaling(
        min_replicas=0,
        max_replicas=3,
        max_instances=4,
        idle=to_duration(timedelta(minutes=1)),
        queue=to_duration(timedelta(milliseconds=5)),
    )
    assert spec.log == scheduling.PredictionLogSpec(share=0.1, dataset="asked")
    assert not pipeline_file.parse(COMPLETE).request.spec.deployment.HasField("scaling")
    assert not pipeline_file.parse(COMPLETE).request.spec.deployment.HasField("log")
    # What is not named has the service's default.
    partly = pipeline_file.parse(text.replace("min_replicas: 0, ", "")).request.spec.deployment.scaling
    assert not partly.HasField("min_replicas")
    into = pipeline_file.parse(text.replace("share: 0.1, ", "")).request.spec.deployment.log
    assert not into.HasField("share")
    with pytest.raises(InvalidArgument, match="replicas"):
        pipeline_file.parse(text.replace("min_replicas: 0", "replicas: 0"))
