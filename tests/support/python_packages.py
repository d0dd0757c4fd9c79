"""Small Python packages as models, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from headrace.client.python_package import packed

EXAMPLE = Path(__file__).parents[2] / "examples" / "python-package"

# Answers as `tests.support.torch_models.Scores` does. BEFORE, LOAD and DEED are what else it does when it is
# imported, when its step is made, and with its arrays.
_STEP = """
import os
import sys
import threading
import time

import numpy as np

BEFORE


class Step:
    def __init__(self, folder):
        self.folder = folder
        LOAD

    def __call__(self, arrays):
        features = arrays["features"]
        DEED
        total = features.sum(axis=1, keepdims=True)
        return {"probabilities": np.concatenate([-total, total], axis=1)}
"""


def package(folder: Path, files: Mapping[str, str], steps: Sequence[str], requirements: str = "") -> bytes:
    """A package of these files, packed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "package.yaml").write_text(f"steps: [{', '.join(steps)}]\n")
    if requirements:
        (folder / "requirements.txt").write_text(requirements)
    with packed(folder) as archive:
        return archive.read_bytes()


def scores_package(
    folder: Path, *, before: str = "", load: str = "pass", deed: str = "pass", requirements: str = ""
) -> bytes:
    """One step: three features to two scores, the second one larger for positive sums."""
    source = _STEP.replace("BEFORE", before).replace("LOAD", load).replace("DEED", deed)
    return package(folder, {"step.py": source}, ["step:Step"], requirements)


def example_package() -> bytes:
    """That of examples/python-package."""
    with packed(EXAMPLE) as archive:
        return archive.read_bytes()
