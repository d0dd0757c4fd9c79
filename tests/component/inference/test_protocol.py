"""Every method of the Open Inference Protocol through Envoy, by stock clients and by plain HTTP."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc as blocking
import tritonclient.grpc.aio as triton
from tests.component.inference.conftest import DEADLINE, TRITON_ENVIRONMENT, Plane, ask

ROOT = Path(__file__).parents[3]
SUPPORT = ROOT / "tests" / "support"

# One for all tests here: to load a model is what takes longest.
MODEL = "protocol"
FEATURES = {"name": "features", "datatype": "FP32", "shape": [-1, 3]}


@pytest.fixture
async def model(plane: Plane) -> str:
    """A model whose version 2 is live."""
    await plane.deploy(MODEL)
    await plane.promote(MODEL, 2)
    await plane.until_live(MODEL, 2)
    return MODEL


async def test_every_method_answers_tritons_grpc_client(plane: Plane, model: str) -> None:
    async with plane.client() as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert (await client.get_server_metadata()).name == "triton"
        assert await client.is_model_ready(model)
        assert await client.is_model_ready(model, "2")
        assert not await client.is_model_ready(model, "9")
        for version in ("", "2"):
            metadata = await client.get_model_metadata(model, version, as_json=True)
            assert metadata["versions"] == ["2"]
            assert [tensor["name"] for tensor in metadata["inputs"]] == ["features"]
        assert (await client.get_model_config(model)).config.max_batch_size
        index = await client.get_model_repository_index()
        assert [(m.version, m.state) for m in index.models if m.name == model] == [("2", "READY")]
        for version in ("", "2"):
            answer = (await ask(client, model, version=version, request_id="mine")).get_response()
            assert (answer.id, answer.model_version) == ("mine", "2")


async def test_the_blocking_grpc_client_is_answered_too(plane: Plane, model: str) -> None:
    def answered() -> tuple[str, str, list[list[int]]]:
        with blocking.InferenceServerClient(plane.address) as client:
            assert client.is_model_ready(model, "2")
            tensor = blocking.InferInput("features", [1, 3], "FP32")
            tensor.set_data_from_numpy(np.ones((1, 3), dtype=np.float32))
            result = client.infer(model, [tensor], request_id="mine")
            response = result.get_response()
            return response.id, response.model_version, result.as_numpy("label").tolist()

    assert await asyncio.to_thread(answered) == ("mine", "2", [[1]])


async def test_a_stream_answers_tritons_grpc_client(plane: Plane, model: str) -> None:
    tensor = triton.InferInput("features", [1, 3], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 3), dtype=np.float32))

    async def requests() -> AsyncIterator[dict[str, object]]:
        for name, request_id in ((model, "first"), ("nobody", "second"), (model, "third")):
            yield {"model_name": name, "request_id": request_id, "inputs": [tensor]}

    async with plane.client() as client:
        answers = [
            error.message() if error else (answer.get_response().id, answer.get_response().model_version)
            async for answer, error in client.stream_infer(requests(), stream_timeout=DEADLINE)
        ]
    assert answers == [("first", "2"), "no model nobody is deployed", ("third", "2")]


async def test_every_method_answers_tritons_http_client(plane: Plane, model: str) -> None:
    client = await asyncio.create_subprocess_exec(
        TRITON_ENVIRONMENT / "bin" / "python",
        SUPPORT / "stock_http_client.py",
        plane.address,
        model,
        "2",
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await client.communicate()
    assert client.returncode == 0
    assert json.loads(out) == {
        "live": True,
        "ready": True,
        "server": "triton",
        "model_ready": True,
        "version_ready": True,
        "other_version_ready": False,
        "versions": ["2"],
        "inputs": [FEATURES],
        "batch": 64,
        "index": [{"name": model, "version": "2", "state": "READY"}],
        "inferred": {"version": "2", "id": "mine", "label": [[1]]},
        "version_inferred": {"version": "2", "id": "named", "label": [[1]]},
        "compressed": {"version": "2", "id": "small", "label": [[1]]},
        "unknown": "404 no model nobody is deployed",
    }


@pytest.fixture(scope="session")
def kserve_environment() -> Path:
    """The environment that has KServe's client, filled where it is not."""
    folder = ROOT / ".venv-kserve"
    fill = ROOT / "tools" / "fill_environment.sh"
    lock, uv = SUPPORT / "kserve_client.lock", ROOT / ".cache" / "uv" / "bin" / "uv"
    subprocess.run([fill, "KServe's client", folder, lock, uv, sys.executable], check=True)
    return folder


async def test_kserves_clients_are_answered_by_grpc_and_rest(
    plane: Plane, model: str, kserve_environment: Path
) -> None:
    client = await asyncio.create_subprocess_exec(
        kserve_environment / "bin" / "python",
        SUPPORT / "kserve_client.py",
        plane.address,
        model,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await client.communicate()
    assert client.returncode == 0

    def answers(unknown: str, version: str | None) -> dict[str, object]:
        inferred = {"version": version, "id": "mine", "label": [[1]]}
        well = {"live": True, "ready": True, "model_ready": True}
        return {**well, "inferred": inferred, "binary": inferred, "unknown": unknown}

    assert json.loads(out) == {
        "grpc": answers("NOT_FOUND no model nobody is deployed", "2"),
        # Its REST client does not read the version that the answer has.
        "rest": answers("404 no model nobody is deployed", None),
    }


async def test_every_path_answers_plain_http(plane: Plane, model: str) -> None:
    async with httpx.AsyncClient(base_url=f"http://{plane.address}") as client:
        for path in (
            f"/v2/models/{model}/ready",
            f"/v2/models/{model}/versions/2/ready",
        ):
            assert (await client.get(path)).status_code == 200, path
        for health in ("live", "ready"):
            assert (await client.get(f"/v2/health/{health}")).json() == {health: True}
        assert (await client.get("/v2")).json()["name"] == "triton"
        for path in (f"/v2/models/{model}", f"/v2/models/{model}/versions/2"):
            metadata = (await client.get(path)).json()
            assert (metadata["name"], metadata["versions"], metadata["inputs"]) == (model, ["2"], [FEATURES])
        assert (await client.get(f"/v2/models/{model}/config")).json()["name"] == model
        listed = (await client.post("/v2/repository/index")).json()
        assert {"name": model, "version": "2", "state": "READY"} in listed
        row = {**FEATURES, "shape": [1, 3], "data": [1, 1, 1]}
        for path in (f"/v2/models/{model}/infer", f"/v2/models/{model}/versions/2/infer"):
            answer = (await client.post(path, json={"id": "mine", "inputs": [row]})).json()
            assert (answer["id"], answer["model_version"], answer["model_name"]) == ("mine", "2", model)


async def test_what_is_not_there_is_not_found(plane: Plane, model: str) -> None:
    async with httpx.AsyncClient(base_url=f"http://{plane.address}") as client:
        for path in ("/v2/models/nobody", f"/v2/models/{model}/versions/9", "/v3"):
            answer = await client.get(path)
            assert (path, answer.status_code) == (path, 404)
            assert answer.json()["error"]
