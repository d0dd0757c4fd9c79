"""A package's worker, asked as a model's process asks it; no Triton is there."""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest
from tests.component.inference.conftest import TRITON_ENVIRONMENT
from tests.support.python_packages import package
from tests.support.triton_code import triton_module

ROWS = {"features": np.array([[1, 2], [3, 4]], np.float32)}
Load = Callable[..., Any]


def wanted() -> bool:
    return True


@pytest.fixture
def python_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.setenv("PATH", f"{TRITON_ENVIRONMENT / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HEADRACE_PACKAGES_PATH", str(tmp_path / "packages"))
    return triton_module("python_package", monkeypatch)


@pytest.fixture
def load(python_package: ModuleType, tmp_path: Path) -> Iterator[Load]:
    """Loads a package of these files, in which `step.py` is the only step."""
    loaded = []

    def made(files: dict[str, str], *, seconds: float = 60.0, outputs: tuple[str, ...] = ("answer",)) -> Any:
        folder = tmp_path / "deployment" / str(len(loaded) + 1)
        data = package(tmp_path / f"source-{len(loaded)}", files, ["step:Step"])
        folder.mkdir(parents=True)
        (folder / "model.zip").write_bytes(data)
        model = python_package.Package(
            folder / "model.zip", ["features"], list(outputs), time.monotonic() + seconds
        )
        loaded.append(model)
        return model

    yield made
    for model in loaded:
        model.close()


def step(body: str, before: str = "") -> str:
    """A step whose answer is said by the body."""
    return f"""
import os
import time
import numpy as np
{before}

class Step:
    def __init__(self, folder):
        self.folder = folder

    def __call__(self, arrays):
        features = arrays["features"]
        {body}
"""


def test_texts_come_as_bytes_and_go_as_texts_or_bytes(load: Load) -> None:
    upper = "np.array([text.decode().upper() for text in features[:, 0]])"
    body = f"return {{'answer': {upper}, 'raw': features[:, 0]}}"
    answer = load({"step.py": step(body)}, outputs=("answer", "raw"))
    found = answer({"features": np.array([["grün".encode()], [b"rot"]], object)}, wanted)
    assert found["answer"].tolist() == ["GRÜN".encode(), b"ROT"]
    assert found["raw"].tolist() == ["grün".encode(), b"rot"]


def test_modules_of_the_platforms_names_are_the_packages_own(load: Load) -> None:
    names = ("model", "confinement", "package_pipe", "class_names", "shelf")
    imported = "; ".join(f"from {name} import NUMBER as {name}" for name in names)
    files = {f"{name}.py": f"NUMBER = {place}" for place, name in enumerate(names)}
    total = f"features[:, 0] * 0 + {' + '.join(names)}"
    answer = load({**files, "step.py": step(f"return {{'answer': {total}}}", imported)})
    assert answer(ROWS, wanted)["answer"].tolist() == [10, 10]


def test_a_worker_knows_nothing_of_the_platforms_parts(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_KAFKA_BOOTSTRAP", "127.0.0.1:9092")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    answer = load({"step.py": step("raise ValueError(' '.join(sorted(os.environ)))")})
    with pytest.raises(ValueError, match="step:Step: ValueError: ") as raised:
        answer(ROWS, wanted)
    said = str(raised.value)
    assert "PATH" in said
    assert "HEADRACE_KAFKA_BOOTSTRAP" not in said
    assert "AWS_SECRET_ACCESS_KEY" not in said


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("return {'answer': [1, 2]}", "its answer is list, and no array of numpy's"),
        (
            "return {'answer': features[:, 0] * 1j}",
            "the output answer is complex64, which the protocol has no word for",
        ),
        ("return {'answer': np.array([1, 'a'], object)}", "the output answer has int among its texts"),
        ("return {1: features}", "it answers 1, which is no name"),
        ("return {'answer': features[0, 0:1]}", r"its output answer is \(1,\) for 2 rows"),
        ("return {'other': features}", "its steps answer other, and no answer"),
        ("1 / 0", "step:Step: ZeroDivisionError: division by zero"),
        ("assert False", "step:Step: AssertionError"),
    ],
)
def test_what_is_no_answer_is_said_and_the_next_request_is_answered(load: Load, body: str, why: str) -> None:
    wrong = f"""if features.any():
            {body}
        return {{'answer': features}}"""
    answer = load({"step.py": step(wrong)})
    with pytest.raises(ValueError, match=why):
        answer(ROWS, wanted)
    zeros = {"features": np.zeros((2, 2), np.float32)}
    assert answer(zeros, wanted)["answer"].tolist() == [[0, 0], [0, 0]]


def test_a_worker_that_ends_is_said_with_its_last_words(load: Load, python_package: ModuleType) -> None:
    answer = load({"step.py": step("print('so long'); os.abort()")})
    with pytest.raises(python_package.Ended, match="ended with SIGABRT; its last words: so long"):
        answer(ROWS, wanted)


def test_what_is_no_message_ends_the_conversation(load: Load, python_package: ModuleType) -> None:
    body = "os.write(int(sys.argv[2]), bytes([5, 0, 0, 0]) + b'words'); return {'answer': features}"
    answer = load({"step.py": step(body, "import sys")})
    with pytest.raises(python_package.Ended, match="its process is not understood any more"):
        answer(ROWS, wanted)


def test_one_that_hangs_is_given_up_a_while_after_its_callers_have_gone(
    load: Load, python_package: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(python_package, "GRACE_SECONDS", 0.3)
    answer = load(
        {"step.py": step("time.sleep(0.5); open(self.folder / 'x', 'x'); return {'answer': features}")}
    )
    # Slow, and waited for.
    assert answer(ROWS, wanted)["answer"].shape == (2, 2)
    answer = load({"step.py": step("time.sleep(3600)")})
    with pytest.raises(python_package.Ended, match="its process hung, and was ended"):
        answer(ROWS, lambda: False)


def test_one_that_does_not_come_up_is_given_up(
    load: Load, python_package: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its environment is there; what hangs is the module.
    load({"step.py": step("return {}")})
    monkeypatch.setattr(python_package, "GRACE_SECONDS", 0.3)
    with pytest.raises(python_package.Ended, match="its process hung, and was ended"):
        load({"step.py": step("return {}", "time.sleep(3600)")}, seconds=0.5)


def test_what_a_worker_started_ends_with_it(load: Load) -> None:
    body = "child = subprocess.Popen(['sleep', '3600']); return {'answer': features[:, 0] * 0 + child.pid}"
    answer = load({"step.py": step(body, "import subprocess")})
    child = psutil.Process(int(answer(ROWS, wanted)["answer"][0]))
    answer.close()
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_equal_requirements_share_an_environment(load: Load, tmp_path: Path) -> None:
    for number in range(2):
        load({"step.py": step(f"return {{'answer': features + {number}}}")})
    assert len(list((tmp_path / "packages" / "environments").iterdir())) == 1
    assert len(list((tmp_path / "packages" / "sources").iterdir())) == 2


def test_what_was_built_once_is_loaded_without_uv(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"step.py": step("return {'answer': features}")}
    load(files).close()
    monkeypatch.setenv("PATH", "")
    assert load(files)(ROWS, wanted)["answer"].tolist() == [[1, 2], [3, 4]]


def test_a_package_that_is_no_archive_is_said(python_package: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="its file is no archive of a package"):
        python_package.Package(path, ["x"], ["y"], time.monotonic() + 60)


def test_an_archive_that_no_import_has_made_is_said(python_package: ModuleType, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("model.py", "")
    with pytest.raises(ValueError, match=r"its archive has no headrace\.json"):
        python_package.Package(tmp_path / "model.zip", ["x"], ["y"], time.monotonic() + 60)


def test_an_environment_that_is_not_built_in_time_is_said(load: Load) -> None:
    with pytest.raises(ValueError, match="its environment was not built in time"):
        load({"step.py": step("pass")}, seconds=0.0)


def test_without_a_folder_or_uv_it_is_said_what_is_missing(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="there is no uv beside Triton"):
        load({"step.py": step("pass")})


def test_of_words_without_end_a_minutes_share_is_logged_and_the_rest_is_counted(
    python_package: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    words = python_package.Words(read, "mine 1")
    count = 100_000
    with os.fdopen(write, "wb") as printed:
        for number in range(count):
            printed.write(b"line %d\n" % number)
    words.close()
    logged = capfd.readouterr().err.splitlines()
    assert logged[:2] == ["mine 1: line 0", "mine 1: line 1"]
    assert sum(len(line) - len("mine 1: ") + 1 for line in logged[:-1]) <= python_package.LOGGED_BYTES + 1
    assert logged[-1].endswith("bytes more, which are not logged")
    assert words.last() == f"line {count - 1}"
