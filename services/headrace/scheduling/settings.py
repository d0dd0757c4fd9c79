"""Settings of the scheduling service, from the environment."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Environment prefix `HEADRACE_SCHEDULING_`: `HEADRACE_SCHEDULING_GRPC_ADDRESS`, ..."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_SCHEDULING_", frozen=True)

    grpc_address: str = "127.0.0.1:7102"
    http_address: str = "127.0.0.1:7202"
    ingestion_target: str = "127.0.0.1:7101"
    registry_target: str = "127.0.0.1:7104"
    inference_target: str = "127.0.0.1:7105"
    consumer_group: str = "headrace-scheduling"
    lease_seconds: float = Field(
        default=10.0, gt=0, description="A node that is silent for so long is lost, and its jobs move."
    )
    deadline_margin_seconds: float = Field(
        default=5.0, ge=0, description="How much later than a node a job's deadline is enforced here."
    )
