"""The example clients, as their users run them."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from tests.component.inference.conftest import Plane
from tests.support.models import classifier_signature

CLIENTS = Path(__file__).parents[3] / "examples" / "clients"

MODEL = "clients"
WORDS = "clients-words"


@pytest.fixture
async def model(plane: Plane) -> str:
    """A model whose version 2 is live; it says 1 of positive features, and 0 of negative ones."""
    await plane.deploy(MODEL)
    await plane.promote(MODEL, 2)
    await plane.until_live(MODEL, 2)
    return MODEL


@pytest.fixture
async def words(plane: Plane) -> str:
    """A model whose version 2 is live; its classes are words, one of them of letters beyond ASCII."""
    await plane.deploy(WORDS)
    await plane.promote(WORDS, 2, signature=classifier_signature("benign", "bösartig"))
    await plane.until_live(WORDS, 2)
    return WORDS


async def said(folder: str, *command: str | Path) -> str:
    """What a program prints, also where it fails."""
    program = await asyncio.create_subprocess_exec(
        *command, cwd=CLIENTS / folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await program.communicate()
    return out.decode()


async def test_the_blocking_python_client_prints_an_answer(plane: Plane, model: str, words: str) -> None:
    command = (sys.executable, "predict.py", plane.address)
    out = await said("python", *command, model, "[1, 1, 1]")
    assert re.search(r"^label \[1\]$", out, re.MULTILINE)
    assert re.search(r"^version 2 prediction id \S+$", out, re.MULTILINE)
    named = await said("python", *command, words, "[1, 1, 1]")
    assert f"class {['bösartig'.encode()]}" in named.splitlines()
    assert await said("python", *command, "nobody", "[1]") == (
        "StatusCode.NOT_FOUND: no model nobody is deployed\n"
    )


async def test_the_asyncio_python_client_prints_an_answer_for_each_row(plane: Plane, model: str) -> None:
    rows = [[sign, sign, sign] for sign in (1, -1, 1)]
    out = await said("python", sys.executable, "predict_asyncio.py", plane.address, model, json.dumps(rows))
    assert re.findall(r"'label': \[(\d)\]} version (\d)", out) == [("1", "2"), ("0", "2"), ("1", "2")]


@pytest.mark.skipif(not shutil.which("go"), reason="needs Go")
async def test_the_go_client_prints_an_answer(plane: Plane, model: str, words: str, tmp_path: Path) -> None:
    program = tmp_path / "predict"
    # It tells of what it fetches the first time.
    told = await said("go", "go", "build", "-o", program, ".")
    assert program.exists(), told
    out = await said("go", program, plane.address, model, "[1, 1, 1]")
    assert re.search(r"^label \[1\]$", out, re.MULTILINE)
    assert re.search(r"^version 2 prediction id \S+$", out, re.MULTILINE)
    named = await said("go", program, plane.address, words, "[1, 1, 1]")
    assert "class [bösartig]" in named.splitlines()
    assert "NotFound desc = no model nobody is deployed" in await said(
        "go", program, plane.address, "nobody", "[1]"
    )


@pytest.mark.skipif(not shutil.which("npm"), reason="needs Node and npm")
async def test_the_node_client_prints_an_answer(plane: Plane, model: str, words: str) -> None:
    told = await said("node", "npm", "ci", "--no-audit", "--no-fund")
    assert (CLIENTS / "node" / "node_modules").exists(), told
    out = await said("node", "node", "predict.js", plane.address, model, "[1, 1, 1]")
    assert re.search(r"^label \[ 1 \]$", out, re.MULTILINE), out
    assert re.search(r"^version 2 prediction id \S+$", out, re.MULTILINE)
    named = await said("node", "node", "predict.js", plane.address, words, "[1, 1, 1]")
    assert "class [ 'bösartig' ]" in named.splitlines()
    refused = await said("node", "node", "predict.js", plane.address, "nobody", "[1]")
    assert refused == "NOT_FOUND: no model nobody is deployed\n"
