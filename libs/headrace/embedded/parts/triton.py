"""NVIDIA Triton on this machine: the server inside the nvidia-pytriton wheel, started by itself.

It lives in an environment of its own: its Python backend is built against numpy 1, and with numpy 2 answers
empty tensors without an error.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from headrace.embedded.parts.process import Part, http_status

_ASK = (
    "import json, sys, sysconfig; print(json.dumps({"
    "'version': f'{sys.version_info[0]}.{sys.version_info[1]}',"
    "'site': sysconfig.get_path('purelib'), 'libdir': sysconfig.get_config_var('LIBDIR')}))"
)
# What models see of a request's headers.
FORWARDED_HEADERS = "traceparent|x-headrace-mirror-id|x-headrace-shadow-version"


@dataclass(frozen=True, slots=True)
class TritonPorts:
    """Where it listens, on loopback."""

    grpc: int
    http: int
    metrics: int


class Triton(Part):
    """An inference server without models; the inference service loads them."""

    name = "triton"
    hint = "Triton needs its own environment, .venv-triton; `make setup` fills it."
    start_seconds = 60.0
    stop_seconds = 15.0

    def __init__(
        self,
        folder: Path,
        logs: Path,
        ports: TritonPorts,
        *,
        environment_folder: Path,
        model_repository: Path,
        kafka_bootstrap: str,
        trace_url: str = "",
        model_memory_bytes: int = 0,
    ) -> None:
        super().__init__(folder, logs)
        self.ports = ports
        self._environment_folder = environment_folder
        self._model_repository = model_repository
        self._kafka_bootstrap = kafka_bootstrap
        self._trace_url = trace_url
        self._model_memory_bytes = model_memory_bytes

    @property
    def _python(self) -> Path:
        return self._environment_folder / "bin" / "python"

    @cached_property
    def _facts(self) -> dict[str, str]:
        answer = subprocess.run([str(self._python), "-c", _ASK], check=True, capture_output=True, text=True)
        facts: dict[str, str] = json.loads(answer.stdout)
        return facts

    @property
    def _server(self) -> Path:
        return Path(self._facts["site"]) / "pytriton" / "tritonserver"

    async def prepare(self) -> None:
        """Lay out the Python backend with the stub of this very Python beside it."""
        if not self._python.exists():
            raise self.failed(f"cannot start: there is no environment at {self._environment_folder}")
        self._model_repository.mkdir(parents=True, exist_ok=True)
        backend = self.folder / "backends" / "python"
        shutil.rmtree(backend, ignore_errors=True)
        shutil.copytree(self._server / "backends" / "python", backend)
        stub = self._server / "python_backend_stubs" / self._facts["version"] / "triton_python_backend_stub"
        shutil.copy(stub, backend)
        (backend / stub.name).chmod(0o755)

    def command(self) -> Sequence[str]:
        """Run the server on loopback, models loaded on request only."""
        options = [
            f"--model-repository={self._model_repository}",
            f"--backend-directory={self.folder / 'backends'}",
            "--model-control-mode=explicit",
            # An unready model must not make the server unready.
            "--strict-readiness=false",
            # A request in a stub that hangs must not keep a stopping server for long.
            "--exit-timeout-secs=5",
            "--log-verbose=0",
            f"--http-port={self.ports.http}",
            f"--grpc-port={self.ports.grpc}",
            f"--metrics-port={self.ports.metrics}",
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            "--metrics-address=127.0.0.1",
            # Envoy asks often whether it still answers, and must not be sent away for it.
            "--grpc-http2-max-ping-strikes=0",
            # For the model's span, as Triton's OpenTelemetry mode dies under concurrent requests, and for its
            # log, where a shadow was asked, too.
            f"--grpc-header-forward-pattern={FORWARDED_HEADERS}",
            f"--http-header-forward-pattern={FORWARDED_HEADERS}",
        ]
        return [str(self._server / "bin" / "tritonserver"), *options]

    def environment(self) -> Mapping[str, str]:
        """What the Python backend's stub needs to find its interpreter, and models what they call."""
        site = self._facts["site"]
        return {
            "PATH": f"{self._environment_folder / 'bin'}:{os.environ.get('PATH', '')}",
            "PYTHONPATH": site,
            "LD_LIBRARY_PATH": f"{self._facts['libdir']}:{site}/nvidia_pytriton.libs",
            "HEADRACE_KAFKA_BOOTSTRAP": self._kafka_bootstrap,
            "HEADRACE_TRACES_URL": self._trace_url,
            # That of training: what it exports, this loads.
            "HEADRACE_TORCH_PATH": sysconfig.get_path("purelib"),
            # What models that are Python packages are unpacked and built into.
            "HEADRACE_PACKAGES_PATH": str(self.folder / "packages"),
            "HEADRACE_MODEL_MEMORY_BYTES": str(self._model_memory_bytes),
        }

    async def ready(self) -> bool:
        """It says so."""
        return await http_status(self.ports.http, "/v2/health/ready") == 200
