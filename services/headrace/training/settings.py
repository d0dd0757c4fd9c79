"""The training service's settings, from the environment."""

from __future__ import annotations

import socket
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from headrace.training.run.specification import IN_MEMORY_BYTES


class Settings(BaseSettings):
    """Environment prefix `HEADRACE_TRAINING_`."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_TRAINING_", frozen=True)

    grpc_address: str = "127.0.0.1:7103"
    http_address: str = "127.0.0.1:7203"
    node: str = Field(default_factory=socket.gethostname, description="This node's name, one of a kind.")
    scheduling_target: str = "127.0.0.1:7102"
    registry_target: str = "127.0.0.1:7104"
    work_folder: Path = Field(default=Path("/var/lib/headrace/runs"), description="Folders of the runs.")
    cpu: float = Field(default=0.0, ge=0, description="Cores offered; 0: those that there are.")
    memory_bytes: int = Field(default=0, ge=0, description="Memory offered; 0: all there is.")
    in_memory_bytes: int = Field(
        default=IN_MEMORY_BYTES, ge=0, description="A version of which more is read is streamed."
    )
    gpu: int = Field(default=-1, ge=-1, description="GPUs offered; -1: those that the driver lists.")
