"""What a stack consists of, for each choice; nothing is started here."""

from __future__ import annotations

from pathlib import Path

from headrace.client.targets import VARIABLES
from headrace.embedded.options import StackOptions, choose
from headrace.embedded.parts.module import PythonModule
from headrace.embedded.plan import SERVICES, Plan
from headrace.embedded.supervision import Node, levels


class CountedPorts:
    """Ports 1, 2, 3, ..."""

    def __init__(self) -> None:
        self.taken: dict[str, int] = {}

    def take(self, name: str, usual: int) -> int:
        assert name not in self.taken
        self.taken[name] = len(self.taken) + 1
        return self.taken[name]


def planned(options: StackOptions) -> dict[str, Node]:
    return {node.name: node for node in Plan(options, CountedPorts()).nodes()}


def settings(node: Node) -> dict[str, str]:
    assert isinstance(node.part, PythonModule)
    return dict(node.part.environment())


def test_the_embedded_stack(tmp_path: Path) -> None:
    nodes = planned(choose(tmp_path))
    assert set(nodes) == {"postgres", "broker", "topics", "trace-sink", "triton", "envoy", *SERVICES}


def test_every_target_that_clients_look_for_is_named(tmp_path: Path) -> None:
    targets = {name for node in planned(choose(tmp_path)).values() for name in node.targets}
    assert set(VARIABLES) <= targets


def test_foundations_come_first(tmp_path: Path) -> None:
    order = [{node.name for node in level} for level in levels(list(planned(choose(tmp_path)).values()))]
    assert order[0] == {"postgres", "broker"}
    assert set(SERVICES) <= order[-2]


def test_envoy_waits_for_its_control_plane_however_long_that_takes_to_start(tmp_path: Path) -> None:
    assert "inference" in planned(choose(tmp_path, broker="kafka"))["envoy"].after


def test_an_embedded_broker_has_no_idempotent_producers_and_forgets(tmp_path: Path) -> None:
    nodes = planned(choose(tmp_path))
    assert settings(nodes["ingestion"])["HEADRACE_KAFKA_IDEMPOTENCE"] == "false"
    assert nodes["broker"].forgets
    assert nodes["topics"].forgets


def test_apache_kafka_has_them_and_remembers(tmp_path: Path) -> None:
    nodes = planned(choose(tmp_path, broker="kafka"))
    assert settings(nodes["ingestion"])["HEADRACE_KAFKA_IDEMPOTENCE"] == "true"
    assert not nodes["broker"].forgets
    assert not nodes["topics"].forgets


def test_parts_that_run_elsewhere_are_used_and_not_started(tmp_path: Path) -> None:
    dsn = "postgresql://somebody:secret@db.example:5432/platform"
    nodes = planned(choose(tmp_path, broker="kafka.example:9092", postgres=dsn, store="s3://bucket/prefix"))
    environment = settings(nodes["registry"])
    assert environment["HEADRACE_KAFKA_BOOTSTRAP"] == "kafka.example:9092"
    assert environment["HEADRACE_POSTGRES_DSN"] == dsn
    assert environment["HEADRACE_STORE_URI"] == "s3://bucket/prefix"
    assert nodes["broker"].part.log is None
    assert nodes["postgres"].part.log is None
    # What is shown to people.
    assert "secret" not in nodes["postgres"].address


def test_no_command_line_shows_a_password(tmp_path: Path) -> None:
    dsn = "postgresql://somebody:secret@db.example:5432/platform"
    for node in planned(choose(tmp_path, postgres=dsn)).values():
        if isinstance(node.part, PythonModule):
            assert "secret" not in " ".join(node.part.command())


def test_spans_go_to_a_collector_of_ones_own(tmp_path: Path) -> None:
    nodes = planned(choose(tmp_path, otlp_endpoint="http://collector.example:4317"))
    assert "trace-sink" not in nodes
    assert settings(nodes["training"])["HEADRACE_OTLP_ENDPOINT"] == "http://collector.example:4317"


def test_only_what_others_use_leaves_loopback(tmp_path: Path) -> None:
    nodes = planned(choose(tmp_path, host="0.0.0.0"))
    environment = settings(nodes["inference"])
    assert environment["HEADRACE_INFERENCE_GRPC_ADDRESS"].startswith("0.0.0.0:")
    assert environment["HEADRACE_INFERENCE_ENVOY_ADDRESS"].startswith("0.0.0.0:")
    assert not environment["HEADRACE_INFERENCE_PUBLIC_ADDRESS"].startswith("0.0.0.0:")
    for name in ("HTTP_ADDRESS", "XDS_ADDRESS", "TRITON_GRPC"):
        assert environment[f"HEADRACE_INFERENCE_{name}"].startswith("127.0.0.1:")
    assert nodes["postgres"].address.startswith("127.0.0.1:")
