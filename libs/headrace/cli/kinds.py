"""The kinds of things that `get` and `describe` show: how each is listed, found and drawn."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from headrace.api.inference.v1 import inference_pb2 as inference
from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.api.registry.v1 import registry_pb2 as registry
from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
from headrace.api.training.v1 import training_pb2 as training
from headrace.cli.dataset import version_request
from headrace.cli.numbers import read_number
from headrace.cli.output import Column, cell, field
from headrace.cli.plain import Plain, plain
from headrace.client import HeadraceClient
from headrace.errors import InvalidArgument, NotFound
from headrace.rpc.paging import pages

Row = dict[str, Plain]
Lister = Callable[[HeadraceClient, str], Awaitable[list[Row]]]
Finder = Callable[[HeadraceClient, str], Awaitable[Row]]

_ID = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class Kind:
    """One kind of thing. `scope` names what a list can be narrowed to; `needs_scope` that it must be."""

    name: str
    aliases: tuple[str, ...]
    columns: Sequence[Column]
    list: Lister
    find: Finder
    scope: str = ""
    needs_scope: bool = False


async def all_pages(
    call: Callable[[Any], Awaitable[Any]], request: Any, items: str, *, at_most: int = 1000
) -> list[Row]:
    """Every item of a paged list, up to a bound that keeps a terminal usable.

    The stubs' request and response types differ with each RPC and share nothing but these fields.
    """
    rows: list[Row] = []
    async for page in pages(call, request):
        rows += [plain(item) for item in getattr(page, items)]
        if len(rows) >= at_most:
            break
    return rows[:at_most]


def numbered(name: str, what: str) -> tuple[str, int]:
    """Split "model/3" into its name and number."""
    owner, _, digits = name.rpartition("/")
    number = read_number(digits)
    if not owner or number is None:
        raise InvalidArgument("INVALID_NAME", f"a {what} is named OWNER/NUMBER, such as breast-cancer/1")
    return owner, number


async def _datasets(client: HeadraceClient, _scope: str) -> list[Row]:
    return await all_pages(client.ingestion.ListDatasets, ingestion.ListDatasetsRequest(), "datasets")


async def _dataset(client: HeadraceClient, name: str) -> Row:
    return plain(await client.ingestion.GetDataset(ingestion.GetDatasetRequest(name=name)))


async def _versions(client: HeadraceClient, scope: str) -> list[Row]:
    return await all_pages(
        client.ingestion.ListVersions, ingestion.ListVersionsRequest(dataset=scope), "versions"
    )


async def _version(client: HeadraceClient, name: str) -> Row:
    dataset, _, version = name.rpartition("/")
    if not dataset or not version:
        raise InvalidArgument(
            "INVALID_NAME",
            "a dataset version is named DATASET/NUMBER or DATASET/TAG",
        )
    return plain(await client.ingestion.GetVersion(version_request(dataset, version)))


async def _rejected(client: HeadraceClient, scope: str) -> list[Row]:
    return await all_pages(
        client.ingestion.ListRejected, ingestion.ListRejectedRequest(dataset=scope), "rejected"
    )


async def _rejected_one(client: HeadraceClient, name: str) -> Row:
    return plain(await find_rejected(client, name))


async def find_rejected(
    client: HeadraceClient, name: str, *, reveal: bool = False
) -> ingestion.RejectedSample:
    """A rejected event by its id; of the newest ones, also by its event id or its place on the topic."""
    if _ID.fullmatch(name):
        # An event id may be a number, too.
        with suppress(NotFound):
            return await client.ingestion.GetRejected(
                ingestion.GetRejectedRequest(id=int(name), reveal=reveal)
            )
    for row in await _rejected(client, ""):
        if name in (row["event_id"], _position(row), f"{row['topic']}/{_position(row)}"):
            found = ingestion.GetRejectedRequest(id=int(str(row["id"])), reveal=reveal)
            return await client.ingestion.GetRejected(found)
    raise NotFound("REJECTED_NOT_FOUND", f"no rejected event {name!r}; `headrace rejected list` lists them")


async def _pipelines(client: HeadraceClient, _scope: str) -> list[Row]:
    return await all_pages(client.scheduling.ListPipelines, scheduling.ListPipelinesRequest(), "pipelines")


async def _pipeline(client: HeadraceClient, name: str) -> Row:
    return plain(await client.scheduling.GetPipeline(scheduling.GetPipelineRequest(name=name)))


async def _jobs(client: HeadraceClient, scope: str) -> list[Row]:
    return await all_pages(client.scheduling.ListJobs, scheduling.ListJobsRequest(pipeline=scope), "jobs")


async def _job(client: HeadraceClient, name: str) -> Row:
    return plain(await client.scheduling.GetJob(scheduling.GetJobRequest(id=name)))


async def _nodes(client: HeadraceClient, _scope: str) -> list[Row]:
    return [plain(node) for node in (await client.scheduling.ListNodes(scheduling.ListNodesRequest())).nodes]


async def _node(client: HeadraceClient, name: str) -> Row:
    for row in await _nodes(client, ""):
        if row["name"] == name:
            return row
    raise NotFound("NODE_NOT_FOUND", f"no node {name!r}; `headrace get nodes` lists them")


async def _runs(client: HeadraceClient, scope: str) -> list[Row]:
    return await all_pages(client.training.ListRuns, training.ListRunsRequest(job=scope), "runs")


async def _run(client: HeadraceClient, name: str) -> Row:
    return plain(await client.training.GetRun(training.GetRunRequest(id=name)))


async def _recipes(client: HeadraceClient, _scope: str) -> list[Row]:
    answer = await client.training.ListRecipes(training.ListRecipesRequest())
    return [plain(recipe) for recipe in answer.recipes]


async def _recipe(client: HeadraceClient, name: str) -> Row:
    for row in await _recipes(client, ""):
        if row["name"] == name:
            return row
    raise NotFound("RECIPE_NOT_FOUND", f"no recipe {name!r}; `headrace get recipes` lists them")


async def _models(client: HeadraceClient, _scope: str) -> list[Row]:
    return await all_pages(client.registry.ListModels, registry.ListModelsRequest(), "models")


async def _model(client: HeadraceClient, name: str) -> Row:
    return plain(await client.registry.GetModel(registry.GetModelRequest(name=name)))


async def _model_versions(client: HeadraceClient, scope: str) -> list[Row]:
    return await all_pages(
        client.registry.ListModelVersions, registry.ListModelVersionsRequest(model=scope), "versions"
    )


async def _model_version(client: HeadraceClient, name: str) -> Row:
    if "@" in name:
        model, _, alias = name.partition("@")
        request = registry.GetModelVersionRequest(model=model, alias=alias)
    else:
        model, version = numbered(name, "model version")
        request = registry.GetModelVersionRequest(model=model, version=version)
    return plain(await client.registry.GetModelVersion(request))


async def _deployments(client: HeadraceClient, _scope: str) -> list[Row]:
    return await all_pages(
        client.inference.ListDeployments, inference.ListDeploymentsRequest(), "deployments"
    )


async def _deployment(client: HeadraceClient, name: str) -> Row:
    deployment = await client.inference.GetDeployment(inference.GetDeploymentRequest(name=name))
    quality = await client.inference.GetQuality(inference.GetQualityRequest(deployment=name))
    # They may be many: `headrace quality` shows them.
    quality.ClearField("segments")
    return {**plain(deployment), "quality": plain(quality)}


async def _rollouts(client: HeadraceClient, scope: str) -> list[Row]:
    return await all_pages(
        client.inference.ListRollouts, inference.ListRolloutsRequest(deployment=scope), "rollouts"
    )


async def _rollout(client: HeadraceClient, name: str) -> Row:
    for deployment in await _deployments(client, ""):
        for row in await _rollouts(client, str(deployment["name"])):
            if row["id"] == name:
                return row
    raise NotFound("ROLLOUT_NOT_FOUND", f"no rollout {name!r}; `headrace get rollouts DEPLOYMENT` lists them")


async def _predictions(client: HeadraceClient, scope: str) -> list[Row]:
    return await all_pages(
        client.inference.ListPredictions, inference.ListPredictionsRequest(deployment=scope), "predictions"
    )


async def _prediction(client: HeadraceClient, name: str) -> Row:
    for deployment in await _deployments(client, ""):
        for row in await _predictions(client, str(deployment["name"])):
            if row["id"] == name and not row["shadow"]:
                return row
    raise NotFound(
        "PREDICTION_NOT_FOUND", f"no recent prediction {name!r}; it can take a second to arrive in the log"
    )


def _answered_by(row: Row) -> str:
    return f"{row['version']} (shadow)" if row["shadow"] else str(row["version"])


def _position(row: Row) -> str:
    """Where a rejected sample is on its topic."""
    return f"{row['partition']}/{row['offset']}"


def _verdict(row: Row) -> str:
    return "-" if row["verdict"] == "UNSPECIFIED" else str(row["verdict"]).lower()


def _marks(row: Row) -> str:
    tags = row["tags"]
    marks = [
        *(tags if isinstance(tags, list) else ()),
        *(["pinned"] if row["pinned"] else ()),
        *([f"{cell(row['erased_rows'])} rows erased"] if row["erased_rows"] else ()),
        *(["expired"] if row["expire_time"] else ()),
    ]
    return cell(marks)


def _split_rows(row: Row) -> str:
    counts = row["split_counts"]
    splits = counts["counts"] if isinstance(counts, dict) else None
    if not isinstance(splits, list):
        return "-"
    return "/".join(str(item["row_count"]) for item in splits if isinstance(item, dict))


def _servers(row: Row) -> str:
    """Where nothing follows the load, every one."""
    return "all" if row["scaling"] is None else str(row["replicas"])


def _traffic(row: Row) -> str:
    traffic = row["traffic"]
    if not isinstance(traffic, list) or not traffic:
        return "-"
    return ", ".join(f"v{item['version']} {item['weight']}%" for item in traffic if isinstance(item, dict))


def _progress(row: Row) -> str:
    progress = row["progress"]
    if not isinstance(progress, dict) or not progress["epochs"]:
        return "-"
    return f"{progress['epoch']}/{progress['epochs']} loss {progress['loss']:.4g}"


def _resources(name: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        resources = row[name]
        if not isinstance(resources, dict):
            return "-"
        memory = resources["memory_bytes"]
        gibibytes = memory / (1 << 30) if isinstance(memory, int) else 0
        return f"{resources['cpu']:g} cpu, {gibibytes:.1f} GiB, {resources['gpu']} gpu"

    return text


KINDS = (
    Kind(
        "datasets",
        ("dataset",),
        (
            field("name", "name"),
            field("rows", "row_count", right=True),
            field("rejected", "rejected_count", right=True),
            field("version", "latest_version", right=True),
            field("schema", "schema_version", right=True),
            field("updated", "update_time"),
        ),
        _datasets,
        _dataset,
    ),
    Kind(
        "versions",
        ("version", "dataset-versions", "dataset-version"),
        (
            field("version", "version", right=True),
            field("rows", "row_count", right=True),
            Column("train/val/test", _split_rows),
            Column("verdict", _verdict),
            Column("marks", _marks),
            field("created", "create_time"),
        ),
        _versions,
        _version,
        scope="dataset",
        needs_scope=True,
    ),
    Kind(
        "rejected",
        ("rejected-samples", "rejected-sample"),
        (
            field("id", "id", right=True),
            Column("at", _position),
            field("event id", "event_id"),
            field("dataset", "dataset"),
            field("state", "state"),
            field("reason", "reason"),
            field("field", "field"),
            field("rule", "rule"),
            field("message", "message"),
        ),
        _rejected,
        _rejected_one,
        scope="dataset",
    ),
    Kind(
        "pipelines",
        ("pipeline",),
        (
            field("name", "name"),
            field("generation", "generation", right=True),
            field("recipe", "spec.training.recipe"),
            field("deployment", "spec.deployment.name"),
            field("updated", "update_time"),
        ),
        _pipelines,
        _pipeline,
    ),
    Kind(
        "jobs",
        ("job",),
        (
            field("id", "id"),
            field("pipeline", "pipeline"),
            field("dataset version", "dataset_version", right=True),
            field("state", "state"),
            field("node", "node"),
            field("attempt", "attempt", right=True),
            Column("progress", _progress),
            field("model version", "model_version", right=True),
            field("message", "message"),
        ),
        _jobs,
        _job,
        scope="pipeline",
    ),
    Kind(
        "nodes",
        ("node",),
        (
            field("name", "name"),
            field("ready", "ready"),
            Column("capacity", _resources("capacity")),
            Column("allocated", _resources("allocated")),
            field("jobs", "jobs"),
            field("last report", "last_report_time"),
        ),
        _nodes,
        _node,
    ),
    Kind(
        "runs",
        ("run",),
        (
            field("id", "id"),
            field("pipeline", "pipeline"),
            field("state", "state"),
            Column("epoch", lambda row: f"{row['epoch']}/{row['epochs']}"),
            field("loss", "loss", right=True),
            field("resumed at", "resumed_epoch", right=True),
            field("message", "message"),
        ),
        _runs,
        _run,
        scope="job",
    ),
    Kind(
        "recipes",
        ("recipe",),
        (field("name", "name"), field("description", "description")),
        _recipes,
        _recipe,
    ),
    Kind(
        "models",
        ("model",),
        (
            field("name", "name"),
            field("latest version", "latest_version", right=True),
            field("aliases", "aliases"),
            field("updated", "update_time"),
        ),
        _models,
        _model,
    ),
    Kind(
        "model-versions",
        ("model-version",),
        (
            field("model", "model"),
            field("version", "version", right=True),
            field("state", "state"),
            field("format", "format"),
            field("dataset version", "lineage.dataset_version.version", right=True),
            field("job", "lineage.job"),
            field("created", "create_time"),
        ),
        _model_versions,
        _model_version,
        scope="model",
        needs_scope=True,
    ),
    Kind(
        "deployments",
        ("deployment",),
        (
            field("name", "name"),
            field("model", "model"),
            field("ready", "ready"),
            Column("traffic", _traffic),
            Column("servers", _servers, right=True),
            field("rollout", "rollout.state"),
            field("address", "address"),
            field("message", "message"),
        ),
        _deployments,
        _deployment,
    ),
    Kind(
        "rollouts",
        ("rollout",),
        (
            field("id", "id"),
            field("from", "from_version", right=True),
            field("to", "to_version", right=True),
            field("state", "state"),
            field("weight", "weight", right=True),
            field("message", "message"),
            field("created", "create_time"),
        ),
        _rollouts,
        _rollout,
        scope="deployment",
        needs_scope=True,
    ),
    Kind(
        "predictions",
        ("prediction",),
        (
            field("id", "id"),
            Column("version", _answered_by, right=True),
            field("time", "time"),
            field("seconds", "seconds", right=True),
            field("outputs", "outputs_json"),
            field("label", "label_json"),
        ),
        _predictions,
        _prediction,
        scope="deployment",
        needs_scope=True,
    ),
)


def kind_named(name: str) -> Kind:
    """The kind of that name, singular or plural. Raises InvalidArgument naming those that exist."""
    for kind in KINDS:
        if name in (kind.name, *kind.aliases):
            return kind
    known = ", ".join([*(kind.name for kind in KINDS), "events"])
    raise InvalidArgument("UNKNOWN_KIND", f"there is no kind {name!r}; there are: {known}")
