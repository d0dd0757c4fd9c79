"""Python packages that are explained: as they answer, within bounds, and with nothing left of them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from tests.component.inference.conftest import TRITON_ENVIRONMENT
from tests.support.explaining import Explaining, MakeExplaining, workers
from tests.support.models import classifier
from tests.support.python_packages import scores_package
from tests.support.waiting import eventually

from headrace.errors import DeadlineExceeded, FailedPrecondition, ResourceExhausted
from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.domain.explanations import Method
from headrace.model_formats import ModelFormat
from headrace.rpc import deadline

FORM = ModelFormat.PYTHON
MEMORY = 256 << 20
# Something that a step starts, and what it is found by.
SLEEP = "98765"
STARTS = f"import subprocess; subprocess.Popen(['sleep', '{SLEEP}'])"


class Packages:
    """An explainer, and packages that answer as `Scores` does, with deeds of their own."""

    def __init__(self, explaining: Explaining, folder: Path) -> None:
        self.explaining = explaining
        self._folder = folder
        self._versions = 0

    async def version(self, **deeds: str) -> ServedVersion:
        self._versions += 1
        data = scores_package(self._folder / str(self._versions), **deeds)
        return await self.explaining.version(self._versions, data, form=FORM)


@pytest.fixture
async def packages(make_explaining: MakeExplaining, tmp_path: Path) -> Packages:
    return Packages(
        await make_explaining(
            explain_memory_bytes=MEMORY,
            packages_python=str(TRITON_ENVIRONMENT / "bin" / "python"),
            packages_path=str(tmp_path / "packages"),
        ),
        tmp_path / "sources",
    )


def descendants() -> list[psutil.Process]:
    """The process that explains a package, and all below it."""
    [process] = workers()
    return [process, *process.children(recursive=True)]


def sleepers() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.cmdline() == ["sleep", SLEEP]:
                found.append(process)
    return found


async def test_a_package_is_sampled_in_its_environment_below_the_same_bounds(
    packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_POSTGRES_DSN", "postgresql://user:secret@db/headrace")
    version = await packages.version(load=STARTS)
    for _ in range(2):
        [row] = await packages.explaining.explain(version)
        assert row.method is Method.SHAPLEY_SAMPLING
        assert row.attributions.amounts == pytest.approx([2, 1, -1])
    processes = descendants()
    # What explains, what hosts the package, the package, and what that has started.
    assert len(processes) == 4
    assert len(sleepers()) == 1
    for process in processes:
        assert process.nice() == 19
        assert process.rlimit(psutil.RLIMIT_DATA) == (MEMORY, MEMORY)
        assert await asyncio.to_thread(Path(f"/proc/{process.pid}/oom_score_adj").read_text) == "1000\n"
        assert "HEADRACE_POSTGRES_DSN" not in process.environ()
    refused = await packages.explaining.refused(version, method=Method.INTEGRATED_GRADIENTS)
    assert refused == (FailedPrecondition, "METHOD_NOT_APPLICABLE")
    # Another one takes its place, and nothing of it is left.
    await packages.explaining.explain(await packages.version())
    await gone(processes[1:])
    processes = descendants()
    await packages.explaining.explain(await packages.explaining.version(9, classifier(3.0)))
    await gone(processes)


async def gone(processes: list[psutil.Process]) -> None:
    """Wait until these have ended, and everything that packages have started."""

    async def left() -> list[psutil.Process]:
        return [one for one in (*processes, *sleepers()) if one.is_running() and not is_zombie(one)]

    await eventually(left, lambda found: not found)


def is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.kill
async def test_a_package_that_hangs_is_ended_with_all_that_it_has_started(packages: Packages) -> None:
    version = await packages.version(load=STARTS)
    await packages.explaining.explain(version)
    processes = descendants()
    hangs = await packages.version(deed="time.sleep(600)", load=STARTS)
    with deadline.bounded(5.0):
        assert await packages.explaining.refused(hangs) == (DeadlineExceeded, "EXPLANATION_TOO_SLOW")
    await gone(processes)
    assert workers() == []
    # However what explains ends.
    await packages.explaining.explain(version)
    processes = descendants()
    processes[0].kill()
    await gone(processes[1:])


async def test_a_package_that_needs_too_much_is_out_of_memory(packages: Packages) -> None:
    large = await packages.version(deed=f"np.ones({MEMORY})")
    assert await packages.explaining.refused(large) == (ResourceExhausted, "EXPLAINER_OUT_OF_MEMORY")


async def test_a_package_that_ends_or_fails_is_asked_again(packages: Packages, tmp_path: Path) -> None:
    mark = str(tmp_path / "ended")
    version = await packages.version(deed=f"os.path.exists({mark!r}) or (os.mkdir({mark!r}), os._exit(3))")
    assert await packages.explaining.refused(version) == (FailedPrecondition, "MODEL_FAILED")
    assert len(await packages.explaining.explain(version)) == 1
    fails = await packages.version(deed="1 / 0")
    assert await packages.explaining.refused(fails) == (FailedPrecondition, "MODEL_FAILED")
    assert len(await packages.explaining.explain(version)) == 1


@pytest.mark.parametrize(
    ("deeds", "why"),
    [
        (
            {"before": "import surely_not_there"},
            "No module named 'surely_not_there'",
        ),
        ({"requirements": f"nothing==1 --hash=sha256:{'0' * 64}"}, "its environment cannot be built: "),
    ],
)
async def test_a_package_that_cannot_be_run_says_why(
    packages: Packages, deeds: dict[str, str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    version = await packages.version(**deeds)
    with pytest.raises(FailedPrecondition, match="cannot be run to be explained") as caught:
        await packages.explaining.explain(version)
    assert caught.value.reason == "PACKAGE_NOT_READY"
    assert why in str(caught.value)


async def test_without_a_python_for_them_packages_are_refused(
    make_explaining: MakeExplaining, tmp_path: Path
) -> None:
    packages = Packages(await make_explaining(), tmp_path)
    refused = await packages.explaining.refused(await packages.version())
    assert refused == (FailedPrecondition, "PACKAGES_NOT_EXPLAINED")
