"""The repository's shape: namespaces stay open, services explain themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = sorted(
    path.name
    for path in (ROOT / "services" / "headrace").iterdir()
    if path.is_dir() and path.name != "__pycache__"
)


@pytest.mark.parametrize("root", ["libs", "services"])
def test_the_namespace_has_no_init(root: str) -> None:
    assert not (ROOT / root / "headrace" / "__init__.py").exists()


def test_there_are_five_services() -> None:
    assert SERVICES == ["inference", "ingestion", "registry", "scheduling", "training"]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_the_same_inside_as_the_others(service: str) -> None:
    folder = ROOT / "services" / "headrace" / service
    for name in ("__main__.py", "app.py", "settings.py", "grpc_api.py", "README.md"):
        assert (folder / name).exists(), name
    for name in ("domain", "storage", "use_cases"):
        assert (folder / name / "__init__.py").exists(), name
    assert list((folder / "storage" / "migrations").glob("[0-9][0-9][0-9][0-9]_*.sql"))
    assert (folder / "storage" / "queries.sql").exists()


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_explains_itself(service: str) -> None:
    text = (ROOT / "services" / "headrace" / service / "README.md").read_text().lower()
    for section in ("## events", "## rpcs", "## tables", "## fail"):
        assert section in text, section
