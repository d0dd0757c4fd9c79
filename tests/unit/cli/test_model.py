"""`headrace model`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.cli import Headrace, Services

from headrace.api.inference.v1 import inference_pb2 as inference
from headrace.api.registry.v1 import registry_pb2 as registry
from headrace.errors import NotFound

SIGNATURE = """\
inputs: [{name: x, datatype: FP32, shape: [-1, 2]}]
outputs: [{name: y, datatype: FP32, shape: [-1]}]
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A model's file, and its signature's."""
    model, signature = tmp_path / "my.pt2", tmp_path / "signature.yaml"
    model.write_bytes(b"a program")
    signature.write_text(SIGNATURE)
    return str(model), str(signature)


@pytest.fixture
def registered(services: Services) -> Services:
    """A registry that promotes whatever comes to a model that it did not know."""

    def missing(request: registry.GetModelRequest) -> registry.Model:
        raise NotFound("MODEL_NOT_FOUND", f"there is no model {request.name!r}")

    def created(request: registry.CreateModelVersionRequest) -> registry.ModelVersion:
        return registry.ModelVersion(model=request.model, version=1, state="MODEL_VERSION_STATE_UPLOADING")

    services.answers |= {
        "GetModel": missing,
        "ApplyModel": lambda request: registry.Model(name=request.name),
        "CreateModelVersion": created,
        "UploadArtifact": lambda _: registry.Artifact(),
        "CommitModelVersion": lambda request: registry.ModelVersion(
            model=request.model, version=1, state="MODEL_VERSION_STATE_PROMOTED"
        ),
    }
    return services


def creations(services: Services) -> list[registry.CreateModelVersionRequest]:
    return [it for it in services.requests if isinstance(it, registry.CreateModelVersionRequest)]


def test_a_file_becomes_a_version_in_the_format_of_its_ending(
    registered: Services, headrace: Headrace, files: tuple[str, str]
) -> None:
    model, signature = files
    words = ("model", "import", model, "--name", "mine", "--signature", signature)
    result = headrace(*words, "--metric", "test/accuracy=0.9")
    assert result.exit_code == 0
    assert "version 1 of mine is promoted; `headrace model deploy mine` serves it" in result.output
    headrace(*words, "--metric", "test/accuracy=0.9")
    headrace(*words)
    first, again, other = creations(registered)
    assert first.format == registry.MODEL_FORMAT_TORCH_EXPORT
    assert first.metrics == {"test/accuracy": 0.9}
    assert [tensor.name for tensor in first.signature.inputs] == ["x"]
    # What makes an import that is run again no second version.
    assert first.request_id == again.request_id != other.request_id
    commits = [it for it in registered.requests if isinstance(it, registry.CommitModelVersionRequest)]
    assert list(commits[0].artifacts) == ["model.pt2"]


def test_a_version_that_misses_a_gate_is_a_failure(
    registered: Services, headrace: Headrace, files: tuple[str, str]
) -> None:
    registered.answers["CommitModelVersion"] = lambda _: registry.ModelVersion(
        version=1,
        state="MODEL_VERSION_STATE_REFUSED",
        gate_results=[registry.GateResult(message="recall on test is missing")],
    )
    model, signature = files
    result = headrace("model", "import", model, "--name", "mine", "--signature", signature)
    assert result.exit_code == 1
    assert "version 1 of mine is refused: recall on test is missing" in result.output


def test_an_import_that_is_done_is_not_repeated(
    registered: Services, headrace: Headrace, files: tuple[str, str]
) -> None:
    registered.answers["CreateModelVersion"] = lambda request: registry.ModelVersion(
        model=request.model, version=4, state="MODEL_VERSION_STATE_PROMOTED"
    )
    model, signature = files
    words = ("model", "import", model, "--name", "mine", "--signature", signature)
    assert json.loads(headrace(*words, "-o", "json").output)["version"] == 4
    assert not [it for it in registered.requests if isinstance(it, registry.CommitModelVersionRequest)]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--format", "pickle"), "UNKNOWN_MODEL_FORMAT"),
        (("--metric", "accuracy"), "INVALID_METRIC"),
    ],
)
def test_wrong_words_are_said(
    registered: Services, headrace: Headrace, files: tuple[str, str], more: tuple[str, ...], reason: str
) -> None:
    model, signature = files
    result = headrace("model", "import", model, "--name", "mine", "--signature", signature, *more)
    assert result.exit_code == 5
    assert reason in result.output
    assert not creations(registered)


def test_a_file_of_no_known_ending_needs_a_format(
    registered: Services, headrace: Headrace, files: tuple[str, str], tmp_path: Path
) -> None:
    other = tmp_path / "my.bin"
    other.write_bytes(b"a program")
    words = ("model", "import", str(other), "--name", "mine", "--signature", files[1])
    assert "UNKNOWN_MODEL_FORMAT" in headrace(*words).output
    assert headrace(*words, "--format", "torchscript").exit_code == 0
    (created,) = creations(registered)
    assert created.format == registry.MODEL_FORMAT_TORCHSCRIPT


def test_a_folder_becomes_a_version_that_is_a_package(
    registered: Services, headrace: Headrace, files: tuple[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "package.yaml").write_text("steps: [model:Model]")
    (folder / "model.py").write_text("class Model: ...")
    words = ("model", "import", str(folder), "--name", "mine")
    assert "signature.yaml cannot be read" in headrace(*words).output
    assert headrace(*words, "--signature", files[1]).exit_code == 0
    (folder / "signature.yaml").write_text(SIGNATURE)
    assert "UNKNOWN_MODEL_FORMAT" in headrace(*words, "--format", "onnx").output
    headrace(*words)
    first, again = creations(registered)
    assert first.format == registry.MODEL_FORMAT_PYTHON
    assert [tensor.name for tensor in again.signature.inputs] == ["x"]
    commits = [it for it in registered.requests if isinstance(it, registry.CommitModelVersionRequest)]
    assert list(commits[0].artifacts) == ["model.zip"]


def test_a_file_needs_a_signature(registered: Services, headrace: Headrace, files: tuple[str, str]) -> None:
    result = headrace("model", "import", files[0], "--name", "mine")
    assert result.exit_code == 5
    assert "SIGNATURE_MISSING" in result.output
    assert not creations(registered)


def test_a_deployment_that_serves_the_model_is_left_as_it_is(services: Services, headrace: Headrace) -> None:
    deployed = list[inference.ApplyDeploymentRequest]()

    def found(request: inference.GetDeploymentRequest) -> inference.Deployment:
        if not deployed:
            raise NotFound("DEPLOYMENT_NOT_FOUND", f"there is no deployment {request.name!r}")
        return inference.Deployment(name=deployed[0].name, model=deployed[0].model)

    def apply(request: inference.ApplyDeploymentRequest) -> inference.Deployment:
        deployed.append(request)
        return inference.Deployment(name=request.name, model=request.model)

    services.answers |= {
        "GetModel": lambda request: registry.Model(name=request.name),
        "GetDeployment": found,
        "ApplyDeployment": apply,
    }
    assert (
        "deployment live serves model mine"
        in headrace("model", "deploy", "mine", "--deployment", "live").output
    )
    assert (
        "deployment live already serves model mine"
        in headrace("model", "deploy", "mine", "--deployment", "live").output
    )
    assert [(it.name, it.model) for it in deployed] == [("live", "mine")]
