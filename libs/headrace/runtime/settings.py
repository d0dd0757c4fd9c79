"""Settings that every service shares, from the environment."""

from __future__ import annotations

import sys
from typing import Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

USAGE_EXIT_CODE = 2


class PlatformSettings(BaseSettings):
    """Where the shared parts are. Environment prefix `HEADRACE_`: `HEADRACE_KAFKA_BOOTSTRAP`, ..."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", frozen=True)

    kafka_bootstrap: str = "127.0.0.1:9092"
    postgres_dsn: str = "postgresql://127.0.0.1:5432/headrace"
    store_uri: str = "file:///var/lib/headrace/store"
    otlp_endpoint: str = Field(
        default="", description="OTLP over gRPC, http://host:port. Empty: no telemetry is exported."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"
    drain_seconds: float = Field(default=10.0, gt=0, description="Longest time that a shutdown may drain.")
    kafka_idempotence: bool = Field(
        default=True, description="Off for brokers without idempotent producers, such as the embedded one."
    )
    kafka_session_seconds: float = Field(
        default=10.0,
        ge=1,
        description="A consumer that is silent for so long loses its partitions. Kafka's own minimum is 6.",
    )


S = TypeVar("S", bound=BaseSettings)


def load(kind: type[S]) -> S:
    """Read settings from the environment; on a wrong value say which variable, and exit with 2."""
    try:
        return kind()
    except ValidationError as error:
        prefix = kind.model_config.get("env_prefix", "")
        for problem in error.errors():
            variable = prefix + "_".join(str(part) for part in problem["loc"]).upper()
            print(f"{variable}={problem['input']!r}: {problem['msg']}", file=sys.stderr)
        sys.exit(USAGE_EXIT_CODE)
