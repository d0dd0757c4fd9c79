"""From options to parts: what a stack consists of, where each part listens, and what needs what."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from headrace.embedded import privacy_keys
from headrace.embedded.options import EMBEDDED, KAFKA, StackOptions
from headrace.embedded.parts.envoy import Envoy
from headrace.embedded.parts.kafka import ApacheKafka
from headrace.embedded.parts.module import PythonModule
from headrace.embedded.parts.outside import Topics, outside_broker, outside_postgres, without_password
from headrace.embedded.parts.postgres import Postgres
from headrace.embedded.parts.tansu import Tansu
from headrace.embedded.parts.triton import Triton, TritonPorts
from headrace.embedded.ports import PortSource
from headrace.embedded.supervision import Node

SERVICES = ("ingestion", "scheduling", "training", "registry", "inference")
# What everything else stands on.
FOUNDATIONS = ("postgres", "topics")
SINK = "trace-sink"

TRITON_ENVIRONMENT_VARIABLE = "HEADRACE_TRITON_ENVIRONMENT"
# Collectors take OTLP over HTTP beside OTLP over gRPC, at this port by convention.
OTLP_HTTP_PORT = 4318
# The embedded broker lets a joining group wait for half of its session.
EMBEDDED_SESSION_SECONDS = 2
KAFKA_SESSION_SECONDS = 6
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class ServicePorts:
    """Where a service listens."""

    grpc: int
    http: int


class Plan:
    """A stack's parts. Takes every port at once, so that each part can be told of the others."""

    def __init__(self, options: StackOptions, ports: PortSource) -> None:
        self.options = options
        self.logs = options.data / "logs"
        self.kafka_idempotence = options.broker != EMBEDDED
        self._host = options.reachable_host
        self._kafka_port = ports.take("kafka", 9092) if options.broker in (EMBEDDED, KAFKA) else 0
        self._controller_port = ports.take("kafka_controller", 9093) if options.broker == KAFKA else 0
        self._postgres_port = ports.take("postgres", 5432) if options.postgres == EMBEDDED else 0
        self._services = {
            name: ServicePorts(ports.take(name, 7101 + index), ports.take(f"{name}_http", 7201 + index))
            for index, name in enumerate(SERVICES)
        }
        self._xds_port = ports.take("xds", 7300)
        self._triton = TritonPorts(
            grpc=ports.take("triton_grpc", 8001),
            http=ports.take("triton_http", 8000),
            metrics=ports.take("triton_metrics", 8002),
        )
        self._protocol_port = ports.take("inference_protocol", 8080)
        self._envoy_admin_port = ports.take("envoy_admin", 9901)
        self._sink_grpc_port = self._sink_http_port = 0
        if self._own_traces:
            self._sink_grpc_port = ports.take("otlp_grpc", 4317)
            self._sink_http_port = ports.take("otlp_http", OTLP_HTTP_PORT)

    @property
    def bootstrap(self) -> str:
        """Where Kafka clients connect."""
        outside = self.options.broker not in (EMBEDDED, KAFKA)
        return self.options.broker if outside else f"{self._host}:{self._kafka_port}"

    @property
    def dsn(self) -> str:
        """Where SQL clients connect."""
        if self.options.postgres != EMBEDDED:
            return self.options.postgres
        return f"postgresql://headrace@{LOOPBACK}:{self._postgres_port}/headrace"

    @property
    def otlp_endpoint(self) -> str:
        """Where spans go, as OTLP over gRPC."""
        return self.options.otlp_endpoint or f"http://{LOOPBACK}:{self._sink_grpc_port}"

    @property
    def targets(self) -> dict[str, str]:
        """Every address that a client may use, by name."""
        return {key: target for node in self.nodes() for key, target in node.targets.items()}

    def nodes(self) -> list[Node]:
        """Every part, made anew."""
        sink = [self._sink()] if self._own_traces else []
        # Spans that a part still sends while it stops find the sink there.
        after = (SINK,) if sink else ()
        return [
            self._postgres(),
            self._broker(),
            Node(Topics(self.bootstrap), after=("broker",), forgets=self.options.broker == EMBEDDED),
            *sink,
            self._triton_node(after),
            # Without its control plane it cannot serve: its deadline would pass while others still start.
            self._envoy(("inference", *after)),
            *(self._service(name, after) for name in SERVICES),
        ]

    @property
    def _own_traces(self) -> bool:
        return not self.options.otlp_endpoint

    def _postgres(self) -> Node:
        targets = {"postgres": self.dsn}
        if self.options.postgres != EMBEDDED:
            return Node(outside_postgres(self.dsn), address=without_password(self.dsn), targets=targets)
        part = Postgres(self.options.data / "postgres", self.logs, self._postgres_port)
        return Node(part, address=f"{LOOPBACK}:{self._postgres_port}", targets=targets)

    def _broker(self) -> Node:
        targets = {"kafka": self.bootstrap}
        listen = {"host": self.options.host, "advertised": self._host}
        match self.options.broker:
            case "embedded":
                tansu = Tansu(self.options.data / "tansu", self.logs, self._kafka_port, **listen)
                return Node(tansu, address=self.bootstrap, targets=targets, forgets=True)
            case "kafka":
                kafka = ApacheKafka(
                    self.options.data / "kafka", self.logs, self._kafka_port, self._controller_port, **listen
                )
                return Node(kafka, address=self.bootstrap, targets=targets)
            case _:
                return Node(outside_broker(self.bootstrap), address=self.bootstrap, targets=targets)

    def _sink(self) -> Node:
        grpc, http = f"{LOOPBACK}:{self._sink_grpc_port}", f"{LOOPBACK}:{self._sink_http_port}"
        part = PythonModule(
            SINK,
            "headrace.embedded.trace_sink",
            self.options.data / "trace-sink",
            self.logs,
            http_port=self._sink_http_port,
            ready_path="/healthz",
            arguments=["--grpc", grpc, "--http", http],
            settings={"HEADRACE_POSTGRES_DSN": self.dsn},
        )
        return Node(part, after=("postgres",), address=grpc, targets={"trace_sink": grpc})

    def _triton_node(self, after: tuple[str, ...]) -> Node:
        part = Triton(
            self.options.data / "triton",
            self.logs,
            self._triton,
            environment_folder=_triton_environment(),
            model_repository=self._models,
            kafka_bootstrap=self.bootstrap,
            trace_url=self._triton_traces,
            # What leaks must end before the machine does.
            model_memory_bytes=psutil.virtual_memory().total // 2,
        )
        grpc, http = f"{LOOPBACK}:{self._triton.grpc}", f"{LOOPBACK}:{self._triton.http}"
        return Node(part, after=after, address=grpc, targets={"triton_grpc": grpc, "triton_http": http})

    def _envoy(self, after: tuple[str, ...]) -> Node:
        part = Envoy(
            self.options.data / "envoy",
            self.logs,
            admin_port=self._envoy_admin_port,
            xds_port=self._xds_port,
        )
        address = f"{self._host}:{self._protocol_port}"
        admin = f"{LOOPBACK}:{self._envoy_admin_port}"
        return Node(
            part, after=after, address=address, targets={"inference_protocol": address, "envoy_admin": admin}
        )

    def _service(self, name: str, after: tuple[str, ...]) -> Node:
        ports = self._services[name]
        prefix = f"HEADRACE_{name.upper()}_"
        own = {
            "grpc_address": f"{self.options.host}:{ports.grpc}",
            "http_address": f"{LOOPBACK}:{ports.http}",
            **self._service_settings(name),
        }
        part = PythonModule(
            name,
            f"headrace.{name}",
            self.options.data / name,
            self.logs,
            http_port=ports.http,
            ready_path="/readyz",
            settings={
                **self._platform_settings(),
                **{f"{prefix}{key.upper()}": value for key, value in own.items()},
            },
        )
        target = self._target(name)
        targets = {name: target, f"{name}_http": own["http_address"]}
        if name == "ingestion":
            # Producers put payloads there that are too large for Kafka.
            targets["store"] = self.options.store_uri
        return Node(part, after=(*FOUNDATIONS, *after), address=target, targets=targets)

    def _service_settings(self, name: str) -> Mapping[str, str]:
        match name:
            case "ingestion":
                return {
                    "privacy_keys_file": str(self.options.data / privacy_keys.FILE),
                    "inference_target": self._target("inference"),
                }
            case "scheduling":
                others = ("ingestion", "registry", "inference")
                return {f"{other}_target": self._target(other) for other in others}
            case "training":
                return {
                    "scheduling_target": self._target("scheduling"),
                    "registry_target": self._target("registry"),
                    "work_folder": str(self.options.data / "training" / "work"),
                }
            case "inference":
                return {
                    "xds_address": f"{LOOPBACK}:{self._xds_port}",
                    "triton_grpc": f"{LOOPBACK}:{self._triton.grpc}",
                    "triton_http": f"{LOOPBACK}:{self._triton.http}",
                    "model_repository": str(self._models),
                    "ingestion_target": self._target("ingestion"),
                    # That of training, as Triton has it.
                    "torch_path": sysconfig.get_path("purelib"),
                    # Its numpy is what packages that bring none are served with.
                    "packages_python": str(_triton_environment() / "bin" / "python"),
                    "packages_path": str(self.options.data / "inference" / "packages"),
                    "envoy_address": f"{self.options.host}:{self._protocol_port}",
                    "public_address": f"{self._host}:{self._protocol_port}",
                }
            case _:
                return {}

    def _platform_settings(self) -> Mapping[str, str]:
        session = EMBEDDED_SESSION_SECONDS if self.options.broker == EMBEDDED else KAFKA_SESSION_SECONDS
        return {
            "HEADRACE_KAFKA_BOOTSTRAP": self.bootstrap,
            "HEADRACE_KAFKA_IDEMPOTENCE": str(self.kafka_idempotence).lower(),
            "HEADRACE_KAFKA_SESSION_SECONDS": str(session),
            "HEADRACE_POSTGRES_DSN": self.dsn,
            "HEADRACE_STORE_URI": self.options.store_uri,
            "HEADRACE_OTLP_ENDPOINT": self.otlp_endpoint,
        }

    def _target(self, name: str) -> str:
        return f"{self._host}:{self._services[name].grpc}"

    @property
    def _models(self) -> Path:
        return self.options.data / "models"

    @property
    def _triton_traces(self) -> str:
        """Where Triton posts spans: it speaks OTLP over HTTP only."""
        if self._own_traces:
            return f"http://{LOOPBACK}:{self._sink_http_port}/v1/traces"
        return f"http://{urlsplit(self.options.otlp_endpoint).hostname}:{OTLP_HTTP_PORT}/v1/traces"


def _triton_environment() -> Path:
    """Triton's own environment: beside the one that this runs in, unless a variable says else."""
    chosen = os.environ.get(TRITON_ENVIRONMENT_VARIABLE)
    return Path(chosen) if chosen else Path(sys.prefix).with_name(".venv-triton")
