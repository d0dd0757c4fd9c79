from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from tests.support.packages import package_with_migrations

from headrace.postgres.migrations import read_migrations


def test_migrations_are_read_in_the_order_of_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, _ = package_with_migrations(
        tmp_path,
        {"0010_later.sql": "SELECT 10", "0002_second.sql": "SELECT 2", "README.md": "no migration"},
        monkeypatch,
    )
    service = package.removesuffix(".storage")
    migrations = read_migrations(package)
    assert [migration.name for migration in migrations] == [
        f"{service}/0002_second.sql",
        f"{service}/0010_later.sql",
    ]
    assert migrations[0].checksum == hashlib.sha256(b"SELECT 2").hexdigest()


@pytest.mark.parametrize("name", ["1_short.sql", "0001.sql", "0001_Upper.sql", "0001-dash.sql"])
def test_a_file_that_is_not_named_like_a_migration_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    package, _ = package_with_migrations(tmp_path, {name: "SELECT 1"}, monkeypatch)
    with pytest.raises(ValueError, match="is not named NNNN_what_it_does"):
        read_migrations(package)


def test_two_migrations_of_one_number_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, _ = package_with_migrations(
        tmp_path, {"0001_mine.sql": "SELECT 1", "0001_yours.sql": "SELECT 2"}, monkeypatch
    )
    with pytest.raises(ValueError, match="two files of one number"):
        read_migrations(package)


@pytest.mark.parametrize("service", ["ingestion", "scheduling", "training", "registry", "inference"])
def test_every_services_migrations_can_be_read(service: str) -> None:
    assert read_migrations(f"headrace.{service}.storage")
