"""The inference service's settings, from the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Environment prefix `HEADRACE_INFERENCE_`."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_INFERENCE_", frozen=True)

    consumer_group: str = Field(
        default="headrace-inference", description="Prefix of the consumer groups, one for each topic."
    )
    grpc_address: str = "127.0.0.1:7105"
    http_address: str = "127.0.0.1:7205"
    xds_address: str = Field(default="127.0.0.1:7300", description="Where Envoys find their configuration.")
    triton_grpc: str = Field(default="127.0.0.1:8001", description="Triton's gRPC address.")
    triton_http: str = Field(default="127.0.0.1:8000", description="Triton's HTTP address.")
    model_repository: Path = Field(
        default=Path("/var/lib/headrace/models"), description="Folder shared with Triton."
    )
    envoy_address: str = Field(
        default="127.0.0.1:8080", description="Where Envoy listens for the Open Inference Protocol."
    )
    max_request_bytes: int = Field(
        default=64 << 20,
        ge=1 << 10,
        description="Larger requests are refused: each is held in Envoy's memory while it is stamped.",
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
    data_plane_address: str = Field(
        default="",
        description="Where this service asks models for asynchronous requests; Envoy's own where empty.",
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
    public_address: str = Field(
        default="", description="The address that clients are told; Envoy's own where empty."
    )
