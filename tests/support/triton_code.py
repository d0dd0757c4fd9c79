"""What runs inside Triton, imported by a test."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from headrace.runtime.resources import deploy_path


def triton_module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of deploy/triton, with those beside it importable, as they are in Triton."""
    monkeypatch.syspath_prepend(str(deploy_path("triton")))
    return importlib.import_module(name)
