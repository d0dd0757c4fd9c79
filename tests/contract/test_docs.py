"""What the documents name is there: files that they link, tests and scripts that they point to."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *(
            path
            for folder in ("benchmarks", "deploy", "docs", "examples", "services")
            for path in (ROOT / folder).rglob("*.md")
        ),
    ]
    if "node_modules" not in path.parts
)
KAFKA_INFERENCE = ROOT / "docs" / "kafka-inference.md"
# Pages that name, for each thing that they promise, what shows it.
PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if "## How it is shown" in page.read_text()]
GUARANTEES = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
NAMED_TEST = re.compile(r"`((?:component|contract|e2e|fuzz|unit)/[\w/]+(?:\.py)?)(?:::(\w+))?`")
NAMED_SCRIPT = re.compile(r"`(benchmarks/\w+\.py)[` ]")


@cache
def defined_tests(file: Path) -> set[str]:
    """The names of the tests that a file defines."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        node.name
        for node in ast.parse(file.read_text()).body
        if isinstance(node, functions) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_documents_links_lead_to_files(document: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    files = {target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:", target)}
    assert [file for file in sorted(files) if file and not (document.parent / file).exists()] == []


@GUARANTEES
def test_what_shows_guarantees_is_there(page: Path) -> None:
    text = page.read_text()
    named = NAMED_TEST.findall(text)
    assert named
    missing = [
        f"{path}::{test}"
        for path, test in named
        if not (file := ROOT / "tests" / path).exists() or (test and test not in defined_tests(file))
    ]
    missing += [script for script in NAMED_SCRIPT.findall(text) if not (ROOT / script).exists()]
    assert missing == []


def test_every_fault_point_stands_in_the_life_of_a_batch() -> None:
    service = ROOT / "services" / "headrace" / "ingestion"
    code = "".join(file.read_text() for file in service.rglob("*.py"))
    points = re.findall(r'fault_point\("([\w.-]+)"\)', code)
    assert len(points) == code.count("fault_point(")
    described = set(re.findall(r"ingestion\.(?:before|after)-[\w-]+", (service / "README.md").read_text()))
    assert described == set(points)


def test_every_fault_point_of_a_request_stands_in_its_way() -> None:
    code = (ROOT / "services/headrace/inference/use_cases/answer_requests.py").read_text()
    points = set(re.findall(r'fault_point\("([\w.-]+)"\)', code))
    described = set(re.findall(r"inference\.(?:before|after)-[\w-]+", KAFKA_INFERENCE.read_text()))
    assert points
    assert described == points | {"inference.after-erase-commit"}


@GUARANTEES
def test_each_line_of_what_is_guaranteed_says_by_what_it_is_shown(page: Path) -> None:
    shown = page.read_text().partition("## How it is shown")[2]
    lines = [line for line in shown.splitlines() if line.startswith("| ") and line != "| what | by |"]
    assert lines
    ways = (NAMED_TEST, NAMED_SCRIPT, re.compile(r"`make [a-z-]+`"), re.compile(r"\(runbooks/"))
    assert [line for line in lines if not any(way.search(line) for way in ways)] == []
