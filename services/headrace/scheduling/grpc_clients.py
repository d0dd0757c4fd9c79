"""The services that a pipeline spans, over gRPC (`use_cases.ports.Peers`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

from headrace.api.inference.v1 import inference_pb2, inference_pb2_grpc
from headrace.api.ingestion.v1 import ingestion_pb2, ingestion_pb2_grpc
from headrace.api.registry.v1 import registry_pb2, registry_pb2_grpc
from headrace.api.scheduling.v1 import scheduling_pb2 as pb
from headrace.errors import DeadlineExceeded, HeadraceError, NotFound, Unavailable
from headrace.rpc.client import channel
from headrace.scheduling.use_cases.pipelines import with_fields


@dataclass(frozen=True, slots=True)
class Targets:
    """Where the services are, host:port each."""

    ingestion: str
    registry: str
    inference: str


class GrpcPeers:
    """Calls, with the errors' fields put under the request that the user made."""

    def __init__(
        self,
        targets: Targets,
        ingestion: ingestion_pb2_grpc.IngestionServiceAsyncStub,
        registry: registry_pb2_grpc.RegistryServiceAsyncStub,
        inference: inference_pb2_grpc.InferenceServiceAsyncStub,
    ) -> None:
        self._targets = targets
        self._ingestion = ingestion
        self._registry = registry
        self._inference = inference

    async def apply_dataset(self, name: str, spec: pb.PipelineSpec) -> None:
        """Create or change the dataset."""
        with _errors_of("ingestion", self._targets.ingestion, _DATASET_PATHS):
            await self._ingestion.ApplyDataset(
                ingestion_pb2.ApplyDatasetRequest(
                    name=name,
                    schema=spec.dataset.schema,
                    cut=spec.dataset.cut if spec.dataset.HasField("cut") else None,
                    rejects=spec.dataset.rejects if spec.dataset.HasField("rejects") else None,
                    quality=spec.dataset.quality,
                    split=_split(spec.training.split) if spec.training.HasField("split") else None,
                    retention=spec.dataset.retention if spec.dataset.HasField("retention") else None,
                    source=spec.dataset.source if spec.dataset.HasField("source") else None,
                    schema_version=spec.dataset.schema_version,
                )
            )

    async def apply_model(self, name: str, spec: pb.PipelineSpec) -> None:
        """Create or change the model and its gates."""
        with _errors_of("registry", self._targets.registry, _MODEL_PATHS):
            await self._registry.ApplyModel(registry_pb2.ApplyModelRequest(name=name, gates=spec.gates))

    async def apply_deployment(self, name: str, spec: pb.PipelineSpec) -> None:
        """Create or change the deployment."""
        deployment = spec.deployment
        # A pipeline that says nothing about steps takes one.
        rollout = deployment.rollout if deployment.HasField("rollout") else pb.RolloutSpec(steps=[100])
        with _errors_of("inference", self._targets.inference, _DEPLOYMENT_PATHS):
            await self._inference.ApplyDeployment(
                inference_pb2.ApplyDeploymentRequest(
                    name=deployment.name,
                    model=name,
                    rollout=rollout,
                    drift=deployment.drift if deployment.HasField("drift") else None,
                    batching=deployment.batching if deployment.HasField("batching") else None,
                    instances=deployment.instances,
                    scaling=deployment.scaling if deployment.HasField("scaling") else None,
                    log=deployment.log if deployment.HasField("log") else None,
                )
            )

    async def dataset_version(
        self, dataset: str, version: int
    ) -> tuple[ingestion_pb2.DatasetVersion, ingestion_pb2.Schema]:
        """A version (0: the newest) and its schema; NotFound DATASET_VERSION_NOT_FOUND."""
        with _errors_of("ingestion", self._targets.ingestion, _same):
            stored = await self._ingestion.GetDataset(ingestion_pb2.GetDatasetRequest(name=dataset))
            number = version or stored.latest_version
            if number == 0:
                raise NotFound(
                    "DATASET_VERSION_NOT_FOUND",
                    f'dataset "{dataset}" has no version yet; send samples and wait for the cut',
                )
            found = await self._ingestion.GetVersion(
                ingestion_pb2.GetVersionRequest(dataset=dataset, version=number)
            )
        return found, stored.schema

    async def newest_data(self, dataset: str) -> tuple[ingestion_pb2.DatasetVersion, ingestion_pb2.Schema]:
        """A version of all that the dataset has, cut now if need be, and its schema. Raises HeadraceError."""
        with _errors_of("ingestion", self._targets.ingestion, _same):
            version = await self._ingestion.CommitVersion(ingestion_pb2.CommitVersionRequest(dataset=dataset))
            stored = await self._ingestion.GetDataset(ingestion_pb2.GetDatasetRequest(name=dataset))
        return version, stored.schema


@asynccontextmanager
async def connect_peers(targets: Targets) -> AsyncIterator[GrpcPeers]:
    """Open channels to the services; they connect when first used."""
    async with AsyncExitStack() as stack:
        ingestion, registry, inference = [
            await stack.enter_async_context(channel(target))
            for target in (targets.ingestion, targets.registry, targets.inference)
        ]
        yield GrpcPeers(
            targets,
            ingestion_pb2_grpc.IngestionServiceStub(ingestion),
            registry_pb2_grpc.RegistryServiceStub(registry),
            inference_pb2_grpc.InferenceServiceStub(inference),
        )


def _split(split: pb.Split) -> ingestion_pb2.Split:
    return ingestion_pb2.Split(train=split.train, validation=split.validation, test=split.test, by=split.by)


@contextmanager
def _errors_of(service: str, target: str, path: Callable[[str], str]) -> Iterator[None]:
    try:
        yield
    except (Unavailable, DeadlineExceeded) as error:
        raise Unavailable(
            "SERVICE_UNAVAILABLE",
            f"the {service} service at {target} does not answer; "
            f"start it and try again, nothing is done twice ({error.message})",
            metadata={"service": service, "target": target},
        ) from error
    except HeadraceError as error:
        raise with_fields(error, path) from error


def _prefixed(prefixes: dict[str, str]) -> Callable[[str], str]:
    def path(field: str) -> str:
        head = field.partition(".")[0].partition("[")[0]
        return prefixes[head] + field if head in prefixes else field

    return path


def _same(field: str) -> str:
    return field


_OF_DATASET: Final = ("schema", "cut", "rejects", "quality", "retention", "source")
_DATASET_PATHS: Final = _prefixed({**dict.fromkeys(_OF_DATASET, "spec.dataset."), "split": "spec.training."})
_MODEL_PATHS: Final = _prefixed({"gates": "spec."})
_DEPLOYMENT_PATHS: Final = _prefixed(
    dict.fromkeys(("name", "rollout", "batching", "instances", "scaling", "log", "drift"), "spec.deployment.")
)
