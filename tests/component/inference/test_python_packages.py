"""Models that are Python packages, on a real Triton: their own dependencies, chains of steps, and mishaps."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc.aio as triton
from tests.component.inference.conftest import TRITON_ENVIRONMENT, Plane, ask
from tests.support.hostile_models import plain_triton
from tests.support.python_packages import EXAMPLE, example_package, package, scores_package
from tests.support.torch_models import scores_signature
from tests.support.waiting import eventually

from headrace.api.inference.v1 import inference_pb2 as api
from headrace.client.inference_protocol import InferenceProtocol
from headrace.client.signature_file import read_signature
from headrace.inference.domain.deployments import ServedVersion, Tensor
from headrace.inference.domain.serving import DEFAULTS
from headrace.inference.triton.repository import ModelRepository
from headrace.model_formats import ModelFormat
from headrace.rpc.client import channel

ANY = "if features.any():\n            "
UNKNOWN = f"surely-no-such-package==1.0 --hash=sha256:{'0' * 64}\n"


async def test_a_package_answers_with_its_own_packages_and_its_own_numpy(plane: Plane, name: str) -> None:
    signature = read_signature(EXAMPLE / "signature.yaml")
    # The example's steps need ftfy, and of numpy 2 the type of its texts.
    site = next(TRITON_ENVIRONMENT.glob("lib/python*/site-packages"))
    assert list(site.glob("numpy-1.*"))
    assert not list(site.glob("ftfy*"))
    await plane.deploy(name)
    await plane.promote(name, 1, example_package(), signature=signature, form=ModelFormat.PYTHON)
    await plane.until_live(name, 1)
    texts = np.array([["Thanks, schÃ¶n !"], ["late, and broken"]], object)
    async with channel(plane.address) as opened:
        answer = await InferenceProtocol(opened).infer(
            name, texts, version="", prediction_id="mine", subject=""
        )
    assert answer.outputs["class"].tolist() == [["praise"], ["complaint"]]
    np.testing.assert_allclose(answer.outputs["scores"], [[0.018, 0.982], [0.971, 0.029]], atol=0.001)
    logged = await plane.until_logged(name, {"mine"})
    assert json.loads(logged["mine"].outputs_json)["class"]["data"] == ["praise", "complaint"]
    # And so it is explained: its one feature is the whole text.
    request = api.ExplainRequest(
        deployment=name, prediction="mine", baseline_kind=api.BASELINE_KIND_ZERO, answer_class="praise"
    )
    explanation = await plane.stub.Explain(request, timeout=60)
    for row, [_, praise] in zip(explanation.rows, answer.outputs["scores"].tolist(), strict=True):
        assert (row.output, row.answer_class) == ("scores", '"praise"')
        assert row.method == api.EXPLANATION_METHOD_SHAPLEY_SAMPLING
        assert row.answer == pytest.approx(praise)
        [text] = row.attributions
        assert text.amount == pytest.approx(row.answer - row.baseline_answer)
    assert json.loads(explanation.rows[0].attributions[0].value) == texts[0, 0]


async def test_what_does_not_serve_never_replaces_what_does(plane: Plane, name: str, tmp_path: Path) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1, signature=scores_signature())
    await plane.until_live(name, 1)
    broken = [
        ({"load": "import surely_no_such_module"}, "step:Step: ModuleNotFoundError: No module named"),
        ({"requirements": UNKNOWN}, "its environment cannot be built: No solution found"),
        ({"requirements": other_contents()}, "its environment cannot be built: Failed to"),
        ({"load": "raise RuntimeError('no weights')"}, "step:Step: RuntimeError: no weights"),
        ({"load": "print('bye', flush=True); os._exit(3)"}, "ended with exit code 3; its last words: bye"),
        ({"load": "os.kill(os.getpid(), 11)"}, "ended with SIGSEGV"),
        ({"deed": "features = features.astype(np.float64)"}, "probabilities is FP64, and the signature says"),
        ({"deed": "features = features[:1]"}, "probabilities is (1, 2) for 2 rows"),
        ({"deed": "return {}"}, "its steps answer nothing, and no probabilities"),
        ({"deed": "return None"}, "it answers NoneType, and no dictionary of arrays"),
    ]
    async with plane.client() as client:
        for version, (how, why) in enumerate(broken, start=2):
            data = scores_package(tmp_path / str(version), **how)
            await plane.promote(name, version, data, signature=scores_signature(), form=ModelFormat.PYTHON)

            def judged(found: api.Deployment, version: int = version) -> bool:
                rollout = found.rollout
                return rollout.to_version == version and rollout.state == api.ROLLOUT_STATE_FAILED

            failed = await plane.until(name, judged)
            assert failed.rollout.message.startswith(f"version {version} did not load")
            assert why in failed.rollout.message
            assert "\n" not in failed.rollout.message
            assert (await ask(client, name)).get_response().model_version == "1"

        version = len(broken) + 2
        data = scores_package(tmp_path / "whole")
        await plane.promote(name, version, data, signature=scores_signature(), form=ModelFormat.PYTHON)
        await plane.until_live(name, version)
        answer = await ask(client, name)
    assert answer.as_numpy("probabilities").tolist() == [[-3, 3]]
    assert answer.as_numpy("class").tolist() == [[b"high"]]


async def test_steps_run_one_behind_the_other_in_one_process(plane: Plane, name: str, tmp_path: Path) -> None:
    step = (
        "import os, numpy\n"
        "class Step:\n"
        "    def __init__(self, folder): self.number = NUMBER\n"
        "    def __call__(self, arrays):\n"
        "        # Those before have multiplied: the order shows.\n"
        "        number = arrays['features'][:, :1] * 10 + self.number\n"
        "        process = numpy.full_like(number, os.getpid() % 65536)\n"
        "        same = arrays.get('process', process) == process\n"
        "        assert same.all()\n"
        "        answers = {'features': number, 'process': process}\n"
        "        both = numpy.concatenate([number, process], 1)\n"
        "        return {'probabilities': both} if self.number == 3 else answers\n"
    )
    files = {f"step{number}.py": step.replace("NUMBER", str(number)) for number in (1, 2, 3)}
    data = package(tmp_path, files, ["step1:Step", "step2:Step", "step3:Step"])
    await plane.deploy(name)
    await plane.promote(name, 1, data, signature=scores_signature(), form=ModelFormat.PYTHON)
    await plane.until_live(name, 1)
    async with plane.client() as client:
        [[number, process]] = (await ask(client, name)).as_numpy("probabilities").tolist()
    assert number == 1123
    assert process == worker(plane, name).pid % 65536


async def test_a_package_whose_worker_was_killed_answers_again_and_its_neighbours_go_on(
    plane: Plane, name: str, tmp_path: Path
) -> None:
    neighbour = f"{name}-neighbour"
    await plane.deploy(neighbour)
    await plane.promote(neighbour, 1)
    await plane.until_live(neighbour, 1)
    await deploy_scores(plane, name, scores_package(tmp_path))
    worker(plane, name).kill()
    async with plane.client() as client:
        await eventually(lambda: answers(client, name, neighbour), bool)
    # What asks it may be killed, too, and leaves it not behind.
    left = worker(plane, name)
    left.parent().kill()
    await eventually(lambda: asyncio.to_thread(ended, left), bool)


async def test_a_package_that_leaks_fails_and_its_worker_ends(tmp_path: Path) -> None:
    data = scores_package(
        tmp_path / "package", deed=ANY + "KEPT.append(np.empty(1 << 23))", before="KEPT = []"
    )
    async with plain_triton(tmp_path, 1 << 30) as server:
        await server.store.put("model.zip", data)
        version = ServedVersion(
            model="leaks",
            version=1,
            uri=server.store.uri("model.zip"),
            sha256=hashlib.sha256(data).hexdigest(),
            inputs=(Tensor("features", "FP32", (-1, 3)),),
            outputs=(Tensor("probabilities", "FP32", (-1, 2)),),
            classes=(),
            signature=b"",
            traceparent="",
            format=ModelFormat.PYTHON,
        )
        await ModelRepository(server.repository, server.store).put("leaks", [version], DEFAULTS)
        async with triton.InferenceServerClient(server.address.grpc) as client:
            await client.load_model("leaks")
            process = worker_below(server.part.pid, "leaks")
            with pytest.raises(triton.InferenceServerException, match=r"step:Step: .*MemoryError"):
                await leak(client)
            # Only a new one gives back what leaked.
            await eventually(lambda: asyncio.to_thread(ended, process), bool)


async def leak(client: triton.InferenceServerClient) -> None:
    """More calls than there is memory for, of 64 MB each."""
    for _ in range(32):
        await ask(client, "leaks")


async def test_a_step_that_fails_fails_its_request_alone(plane: Plane, name: str, tmp_path: Path) -> None:
    deed = ANY + "raise KeyError('one\\ntwo')"
    await deploy_scores(plane, name, scores_package(tmp_path, deed=deed))
    process = worker(plane, name)
    async with plane.client() as client:
        with pytest.raises(triton.InferenceServerException, match="the model failed: step:Step: KeyError"):
            await ask(client, name)
        zeros = triton.InferInput("features", [2, 3], "FP32")
        zeros.set_data_from_numpy(np.zeros((2, 3), np.float32))
        assert (await client.infer(name, [zeros])).as_numpy("probabilities").tolist() == [[0, 0], [0, 0]]
    assert worker(plane, name) == process


async def test_a_step_that_hangs_is_ended_when_nobody_waits_for_it(
    plane: Plane, name: str, tmp_path: Path
) -> None:
    neighbour = f"{name}-neighbour"
    await plane.deploy(neighbour)
    await plane.promote(neighbour, 1)
    await plane.until_live(neighbour, 1)
    # Once: whoever comes after it finds it whole.
    deed = (
        ANY + "try: open(self.folder / 'hung', 'x')\n"
        "            except FileExistsError: pass\n"
        "            else: threading.Event().wait()"
    )
    await deploy_scores(plane, name, scores_package(tmp_path, deed=deed))
    async with plane.client() as client:
        with pytest.raises(triton.InferenceServerException) as raised:
            await ask(client, name, seconds=1)
        assert raised.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        await eventually(lambda: answers(client, name, neighbour), bool)


async def test_a_package_that_prints_for_ever_answers_and_fills_no_log(
    plane: Plane, name: str, tmp_path: Path
) -> None:
    words = "lambda: [print('words without end') for _ in iter(int, 1)]"
    load = f"threading.Thread(target={words}, daemon=True).start()"
    await deploy_scores(plane, name, scores_package(tmp_path, load=load))
    async with plane.client() as client:
        for _ in range(20):
            assert (await ask(client, name)).as_numpy("probabilities").tolist() == [[-3, 3]]
    said = await asyncio.to_thread(plane.triton.log.read_text)
    assert 0 < said.count(f"{name} 1: words without end") < 10_000
    worker(plane, name).kill()


def other_contents() -> str:
    """A requirement of the example's, with the hash of something else."""
    locked = (EXAMPLE / "requirements.txt").read_text()
    version = re.search(r"^wcwidth==\S+", locked, re.MULTILINE)
    assert version is not None
    return f"{version[0]} --hash=sha256:{'0' * 64}\n"


async def deploy_scores(plane: Plane, name: str, data: bytes) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1, data, signature=scores_signature(), form=ModelFormat.PYTHON)
    await plane.until_live(name, 1)


async def answers(client: triton.InferenceServerClient, name: str, neighbour: str) -> bool:
    """Whether a deployment answers; its neighbour must."""
    assert (await ask(client, neighbour)).get_response().model_version == "1"
    try:
        return (await ask(client, name, seconds=1)).as_numpy("probabilities").tolist() == [[-3, 3]]
    except triton.InferenceServerException:
        return False


def worker(plane: Plane, name: str) -> psutil.Process:
    """The process of a package's steps."""
    return worker_below(plane.triton.pid, name)


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def worker_below(server: int | None, name: str) -> psutil.Process:
    children = psutil.Process(server).children(recursive=True)
    # What has ended has no command any more.
    living = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    program = f"/{name}/1/package_worker.py"
    [process] = [child for child in living if any(program in part for part in child.cmdline())]
    return process
