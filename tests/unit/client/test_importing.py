"""How far an import got, and at which broker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.client import HeadraceClient, importing
from headrace.client.data_files import find_files
from headrace.client.importing import Imported, ImportLog, import_file
from headrace.messaging.events import Event

DATASET = ingestion.Dataset(name="d", schema=ingestion.Schema(key="id"))


@dataclass
class FakeClient:
    """A broker that takes everything."""

    cluster: str = "first"
    sent: list[str] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    """How many events each of them had."""

    async def cluster_id(self) -> str:
        return self.cluster

    async def publish_samples(self, keyed: Iterable[tuple[str, Event]]) -> None:
        keys = [key for key, _ in keyed]
        self.sent += keys
        self.batches.append(len(keys))


@dataclass
class Progress:
    """What a bar is told."""

    total: int = 0
    steps: list[int] = field(default_factory=list)

    def opened(self, rows: int) -> None:
        self.total = rows


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a"}\n{"id": "b"}\n')
    return path


def run(
    client: FakeClient, file: Path, *, again: bool = False, progress: Progress | None = None
) -> tuple[Imported, list[int]]:
    """What it came to, and what was told of another broker, before anything was sent to this one."""
    told: list[int] = []
    bar = progress or Progress()
    sent = len(client.sent)

    def other_broker(rows: int) -> None:
        assert len(client.sent) == sent
        told.append(rows)

    async def imported() -> Imported:
        [found] = await find_files([str(file)])
        return await import_file(
            cast("HeadraceClient", client),
            DATASET,
            found,
            ImportLog(file.parent / "imports"),
            again=again,
            traceparent="",
            opened=bar.opened,
            published=bar.steps.append,
            other_broker=other_broker,
        )

    return asyncio.run(imported()), told


def test_a_file_that_one_broker_has_is_not_sent_to_it_again(file: Path) -> None:
    client = FakeClient()
    assert run(client, file) == (Imported(2, 0), [])
    assert run(client, file) == (Imported(0, 2), [])
    assert run(client, file, again=True) == (Imported(2, 0), [])


def test_progress_is_told_as_rows_are_published(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "BATCH", 2)
    file.write_text("".join(f'{{"id": "{name}"}}\n' for name in "abcde"))
    progress = Progress()
    run(FakeClient(), file, progress=progress)
    assert (progress.total, progress.steps) == (5, [2, 2, 1])


def test_of_large_rows_fewer_are_held_at_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "BATCH_BYTES", 20)
    file.write_text("".join(f'{{"id": "{name}"}}\n' for name in "abcde"))
    client = FakeClient()
    assert run(client, file) == (Imported(5, 0), [])
    assert (client.sent, client.batches) == (list("abcde"), [2, 2, 1])


def test_rows_that_another_broker_had_are_told_and_sent_only_if_that_is_wanted(file: Path) -> None:
    client = FakeClient()
    run(client, file)
    client.cluster = "second"
    assert run(client, file) == (Imported(0, 2), [2])
    assert client.sent == ["a", "b"]
    assert run(client, file, again=True) == (Imported(2, 0), [])
    # Now this broker has them.
    assert run(client, file) == (Imported(0, 2), [])


@pytest.mark.parametrize("written", ["", "{", "[]", "{}", '{"last_row": "x"}'])
def test_progress_that_cannot_be_read_is_none(file: Path, written: str) -> None:
    client = FakeClient()
    run(client, file)
    [noted] = (file.parent / "imports").iterdir()
    noted.write_text(written)
    assert run(client, file) == (Imported(2, 0), [])
