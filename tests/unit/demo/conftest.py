"""The demo's modules, which stand in a folder and not in a package."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def demo_folder(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the modules are imported from."""
    folder = Path(__file__).parents[3] / "examples" / "demo"
    monkeypatch.syspath_prepend(str(folder))
    return folder
