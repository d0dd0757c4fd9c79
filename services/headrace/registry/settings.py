"""The registry's settings, from the environment."""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Environment prefix `HEADRACE_REGISTRY_`."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_REGISTRY_", frozen=True)

    grpc_address: str = "127.0.0.1:7104"
    http_address: str = "127.0.0.1:7204"
