"""What docs/model-formats.md says to type for a Python package, typed."""

from __future__ import annotations

import re
import shlex

import pytest
from tests.e2e.conftest import ROOT, Stack
from tests.e2e.test_platform import live, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_the_example_of_a_python_package_is_imported_deployed_and_asked(stack: Stack) -> None:
    section = (ROOT / "docs" / "model-formats.md").read_text().partition("## A Python package")[2]
    commands = re.findall(r"^\$ headrace (.+)\n(.*)$", section, re.MULTILINE)
    assert [words.split()[:2] for words, _ in commands][:2] == [["model", "import"], ["model", "deploy"]]
    for words, answer in commands[:2]:
        assert answer in " ".join(stack.headrace(*shlex.split(words)).stdout.split())
    until(lambda: live(stack, "opinions"), "the package to be deployed")
    [asked] = [words for words, _ in commands[2:]]
    shown = stack.headrace(*shlex.split(asked)).stdout
    assert re.search("praise.*complaint", shown, re.DOTALL)
    # The embedded stack tells what explains of that environment.
    explained = stack.headrace("explain", "opinions", "-d", '[["late, and broken"]]', "--baseline", "zero")
    assert 'class "complaint"' in explained.stdout
    assert "shapley sampling" in explained.stdout
    # Imported again, the same folder is the same version.
    assert "version 1 of opinions" in stack.headrace(*shlex.split(commands[0][0])).stdout
