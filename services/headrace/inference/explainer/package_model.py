"""Python packages, which answer from an environment of their own, in a process that Triton's runtime knows.

That runtime, `deploy/triton/package_host.py`, is run as a program, by the Python that is set. It is below
this process: as nice, with as little memory, and ended with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final

import numpy as np

from headrace.inference.domain.attribution import NoGradients, Numbers, Texts
from headrace.inference.explainer.frames import LENGTH, PackageAnswer, PackageQuestion, Task
from headrace.inference.explainer.models import ModelFailed, ModelNotReady
from headrace.runtime.children import bound_to_parent
from headrace.runtime.resources import deploy_path

# As many rows as are asked at once where packages serve.
_MOST_ROWS: Final = 64


class PackageModel:
    """A package that runs."""

    continuous: Final = False
    differentiable: Final = False

    def __init__(self, task: Task, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._numbers = task.numbers
        self._texts = task.texts
        self._process = process
        self._questions = process.stdin
        self._answers = process.stdout

    @classmethod
    def load(cls, task: Task, python: str, folder: str, memory_bytes: int) -> PackageModel:
        """Start it; `folder` is where packages are unpacked and built. Raises ModelNotReady, MemoryError."""
        program = shutil.which(python)
        if program is None:
            raise ModelNotReady("HEADRACE_INFERENCE_PACKAGES_PYTHON names no Python")
        host = [program, "-I", str(deploy_path("triton/package_host.py"))]
        process = subprocess.Popen(
            bound_to_parent([*host, task.file, task.output, str(task.until)], death_signal=signal.SIGTERM),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # What a package prints may hold a row's values.
            stderr=subprocess.DEVNULL,
            env={
                **os.environ,
                # uv is beside that Python.
                "PATH": f"{Path(program).parent}:{os.environ.get('PATH', '')}",
                "HEADRACE_PACKAGES_PATH": folder,
                "HEADRACE_MODEL_MEMORY_BYTES": str(memory_bytes),
            },
        )
        model = cls(task, process)
        try:
            said = model._said()
        except ModelFailed:
            said = PackageAnswer(failure="its process has ended")
        if said.failure:
            model.close()
            raise MemoryError if _is_of_memory(said.failure) else ModelNotReady(said.failure)
        return model

    def answer(self, numbers: Numbers, texts: Texts) -> Numbers:
        """As `Model` has it."""
        parts = [slice(first, first + _MOST_ROWS) for first in range(0, len(numbers), _MOST_ROWS)]
        output = np.concatenate([self._asked(numbers[part], texts[part]) for part in parts])
        if not np.isfinite(output).all():
            raise ModelFailed
        return output

    def gradients(self, numbers: Numbers, place: int) -> Numbers:
        """None."""
        raise NoGradients

    def close(self) -> None:
        """End it with all that it has started; its host does that."""
        self._process.terminate()
        self._process.wait()
        self._questions.close()
        self._answers.close()

    def _asked(self, numbers: Numbers, texts: Texts) -> Numbers:
        question = PackageQuestion(
            rows=len(numbers),
            numbers=self._numbers,
            data=numbers.astype("<f4").tobytes() if self._numbers else b"",
            texts=self._texts,
            words=tuple(map(tuple, texts.tolist())) if self._texts else (),
        )
        try:
            self._questions.write(question.packed())
            self._questions.flush()
        except OSError:
            raise ModelFailed from None
        said = self._said()
        if said.failure:
            raise MemoryError if _is_of_memory(said.failure) else ModelFailed
        return np.frombuffer(said.values, "<f8").reshape(len(numbers), -1)

    def _said(self) -> PackageAnswer:
        header = self._answers.read(LENGTH.size)
        if len(header) < LENGTH.size:
            raise ModelFailed
        return PackageAnswer.model_validate_json(self._answers.read(*LENGTH.unpack(header)))


def _is_of_memory(failure: str) -> bool:
    return "MemoryError" in failure or "alloc" in failure or "memory is used up" in failure
