"""The inference service's settings, from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Environment prefix `HEADRACE_INFERENCE_`."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_INFERENCE_", frozen=True)

    consumer_group: str = Field(
        default="headrace-inference", description="Prefix of the consumer groups, one for each topic."
    )
    grpc_address: str = "127.0.0.1:7105"
    http_address: str = "127.0.0.1:7205"
    ingestion_target: str = Field(
        default="127.0.0.1:7101",
        description="The ingestion service, whose profiles of training data drift and explanations go by.",
    )
    xds_address: str = Field(default="127.0.0.1:7300", description="Where Envoys find their configuration.")
    triton_grpc: str = Field(
        default="127.0.0.1:8001",
        description="Triton's gRPC address; of several servers, with commas between.",
    )
    triton_http: str = Field(
        default="127.0.0.1:8000", description="Triton's HTTP address; of several servers, in the same order."
    )
    tuning_triton_grpc: str = Field(
        default="",
        description="gRPC address of the Triton server that deployments are tuned on, with the same model "
        "repository; the first of those that answer clients where empty.",
    )
    model_repository: Path = Field(
        default=Path("/var/lib/headrace/models"), description="Folder shared with every Triton."
    )
    envoy_address: str = Field(
        default="127.0.0.1:8080", description="Where Envoy listens for the Open Inference Protocol."
    )
    envoy_target: str = Field(
        default="",
        description="Where this service asks Envoy, for streams and over Kafka; `envoy_address` where empty.",
    )
    max_request_bytes: int = Field(
        default=64 << 20,
        ge=1 << 10,
        description="Larger requests are refused: each is held in Envoy's memory while it is stamped.",
    )
    max_request_seconds: float = Field(
        default=60.0, ge=1, description="Requests that take longer to arrive are refused."
    )
    client_requests_per_second: int = Field(
        default=0,
        ge=0,
        description="Requests that one Envoy takes from one client address; 0 for any number.",
    )
    model_requests_per_second: int = Field(
        default=0, ge=0, description="Requests that one Envoy takes for one deployment; 0 for any number."
    )
    trace_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of the requests without a trace context that Envoy begins a trace for.",
    )
    # A day more than the topic keeps predictions.
    erasure_retention_hours: int = Field(
        default=192,
        ge=24,
        description="An erasure is remembered so long; longer than the topic keeps predictions.",
    )
    prediction_retention_hours: int = Field(
        default=720,
        ge=24,
        description="Predictions and their labels are kept so long in PostgreSQL; longer than the topic "
        "keeps them.",
    )
    triton_memory_bytes: int = Field(
        default=0,
        ge=0,
        description="Memory of each Triton server for models; 0 for any amount. Where it is short, those "
        "deployments that may be unloaded are, and others wait for room.",
    )
    wake_seconds: float = Field(
        default=60.0,
        gt=0,
        le=300,
        description="How long a request waits for a deployment that is loaded nowhere, at most.",
    )
    requests_in_flight: int = Field(
        default=1000,
        ge=1,
        description="Asynchronous requests that are read from their topic and have no answer yet, at most.",
    )
    requests_at_once: int = Field(
        default=64, ge=1, description="Calls under way for asynchronous requests of one deployment, at most."
    )
    request_rows_merged: int = Field(
        default=32,
        ge=1,
        le=64,
        description="Rows of small asynchronous requests that are asked in one call; 1: each by itself.",
    )
    request_retries: int = Field(
        default=3, ge=0, le=100, description="Retries of an asynchronous request that does not say how many."
    )
    # A day more than the topic keeps requests.
    request_retention_hours: int = Field(
        default=72,
        ge=1,
        description="Requests and their answers are kept so long; longer than the topic keeps requests.",
    )
    reply_topics: tuple[str, ...] = Field(
        default=(), description="Topics that a request may name for its response; they must exist."
    )
    explain_processes: int = Field(
        default=1, ge=1, description="Processes that explain, started when they are needed; one core each."
    )
    explain_waiting: int = Field(
        default=8, ge=0, description="Explanations that wait for their turn; more are refused."
    )
    explain_rows: int = Field(default=16, ge=1, description="Rows that one call explains, at most.")
    explain_evaluations: int = Field(
        default=200_000, ge=100, description="Rows that a model answers for one explanation, at most."
    )
    explain_seconds: float = Field(
        default=30.0, gt=0, description="Longest time of an explanation, whatever its caller's deadline."
    )
    explain_memory_bytes: int = Field(
        default=1 << 30,
        ge=256 << 20,
        description="Memory of a process that explains, its model included; PyTorch's own libraries "
        "come on top.",
    )
    torch_path: str = Field(
        default="",
        description="Folder in which PyTorch is, for explanations of models in its formats; where it is "
        "empty, among the service's own packages.",
    )
    packages_python: str = Field(
        default="",
        description="Python for explanations of Python packages, of an environment with numpy and uv as "
        "Triton's; where it is empty, packages are not explained.",
    )
    packages_path: Path = Field(
        default=Path("/var/lib/headrace/explained-packages"),
        description="Folder in which packages that are explained are unpacked, and their environments built.",
    )
    public_address: str = Field(
        default="", description="The address that clients are told; Envoy's own where empty."
    )

    @property
    def triton_servers(self) -> tuple[tuple[str, str], ...]:
        """The gRPC and the HTTP address of each Triton server."""
        return tuple(zip(_addresses(self.triton_grpc), _addresses(self.triton_http), strict=True))

    @model_validator(mode="after")
    def _each_server_has_both_addresses(self) -> Self:
        grpc, http = _addresses(self.triton_grpc), _addresses(self.triton_http)
        if not grpc or len(grpc) != len(http):
            raise ValueError(
                f"TRITON_GRPC names {len(grpc)} servers and TRITON_HTTP {len(http)}: "
                "name each in both, in one order"
            )
        return self


def _addresses(text: str) -> list[str]:
    return [address for part in text.split(",") if (address := part.strip())]
