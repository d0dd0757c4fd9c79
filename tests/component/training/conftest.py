from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.runs import Runs
from tests.support.services import ServiceProcess, platform
from tests.support.training import Training, playing_control, write_table


@pytest.fixture(scope="session")
def table_uri(session_folder: Path) -> str:
    """A dataset's table; nobody changes it."""
    uri = (session_folder / "tables" / "breast-cancer").as_uri()
    write_table(uri)
    return uri


@pytest.fixture
def runs(tmp_path: Path, table_uri: str, store_uri: str) -> Runs:
    return Runs(tmp_path, table_uri, store_uri)


@pytest.fixture
async def training(
    kafka_bootstrap: str, postgres_dsn: str, store_uri: str, tmp_path: Path, table_uri: str
) -> AsyncIterator[Training]:
    """A node that is not started yet, and a registry that is."""
    shared = platform(kafka_bootstrap, postgres_dsn, store_uri)
    registry = ServiceProcess("registry", tmp_path, shared)
    async with playing_control() as (control, scheduling_target):
        node = ServiceProcess(
            "training",
            tmp_path,
            {
                **shared,
                "HEADRACE_TRAINING_NODE": "node-1",
                "HEADRACE_TRAINING_SCHEDULING_TARGET": scheduling_target,
                "HEADRACE_TRAINING_REGISTRY_TARGET": registry.target,
                "HEADRACE_TRAINING_WORK_FOLDER": str(tmp_path / "runs"),
            },
        )
        training = Training(node, registry, control, table_uri)
        await registry.start()
        await training.apply_model()
        yield training
        await asyncio.gather(node.stop(), registry.stop())
