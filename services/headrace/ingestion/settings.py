"""Settings of the ingestion service, from the environment."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Environment prefix `HEADRACE_INGESTION_`: `HEADRACE_INGESTION_GRPC_ADDRESS`, ..."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_INGESTION_", frozen=True)

    grpc_address: str = "127.0.0.1:7101"
    http_address: str = "127.0.0.1:7201"
    consumer_group: str = "headrace-ingestion"

    max_event_bytes: int = Field(
        default=1024 * 1024, gt=0, description="A larger event (key, payload, headers) is rejected."
    )
    max_published_bytes: int = Field(
        default=512 * 1024,
        gt=0,
        description="Of a rejected event, so much is published; the table keeps all of it.",
    )
    batch_events: int = Field(default=20_000, gt=0, description="A batch has at most so many events.")
    batch_bytes: int = Field(
        default=32 * 1024 * 1024, gt=0, description="A batch is closed when it has so many bytes."
    )
    batch_seconds: float = Field(
        default=0.25, gt=0, description="A batch is closed so long after its first event."
    )
    retry_seconds: float = Field(
        default=5.0, gt=0, description="Longest pause before a batch that failed is tried again."
    )
    sweep_seconds: float = Field(
        default=10.0, gt=0, description="How often all datasets are looked at for versions that are due."
    )
