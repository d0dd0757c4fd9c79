"""Packages that a test writes, as a service would bring them."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest


def package_with_migrations(
    folder: Path, files: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path]:
    """A new importable package `<unique>.storage`, and the folder of its migrations."""
    name = f"service_{uuid.uuid4().hex}"
    migrations = folder / name / "storage" / "migrations"
    migrations.mkdir(parents=True)
    for package in (folder / name, folder / name / "storage"):
        (package / "__init__.py").touch()
    for file, text in files.items():
        (migrations / file).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    return f"{name}.storage", migrations
