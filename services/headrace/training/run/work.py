"""What a run does, in order."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from headrace.objects import ObjectStore
from headrace.recipes.catalogue import parse_parameters
from headrace.recipes.mlp import MlpParameters
from headrace.telemetry import names, tracing
from headrace.training.run.checkpoints import Checkpoints
from headrace.training.run.data import Data, Split, load
from headrace.training.run.export import export, require_exportable
from headrace.training.run.messages import Pipe
from headrace.training.run.model import Normalised, build_mlp
from headrace.training.run.preprocessing import Preprocessor, fit
from headrace.training.run.report import MODEL_FILE, Report
from headrace.training.run.specification import RunSpec
from headrace.training.run.tasks import Classification, Regression, Task
from headrace.training.run.trainer import Trainer


def work(spec: RunSpec, folder: Path, pipe: Pipe, stopping: Callable[[], bool]) -> None:
    """Load, prepare, train, evaluate, export; leaves model, preprocessing and report. Raises RunError."""
    parameters = parse_parameters(spec.recipe, spec.parameters)
    assert isinstance(parameters, MlpParameters), "the catalogue has one recipe"
    torch.set_num_threads(max(1, math.floor(spec.cpu)))
    torch.manual_seed(spec.seed)
    classified = parameters.loss == "cross_entropy"
    device = torch.device("cuda" if spec.gpu and torch.cuda.is_available() else "cpu")

    with tracing.span(names.SPAN_LOAD_DATA):
        data = load(
            spec.dataset,
            spec.shares,
            classified=classified,
            in_memory_bytes=spec.in_memory_bytes,
            nullable=[wish.feature for wish in spec.preparations if wish.missing != "refuse"],
            texts=spec.encoded_texts(),
        )
        rows = {split.name: len(split) for split in data.splits()}
        print(f"rows: {rows}; device: {device}", flush=True)
    task: Task = Classification(len(spec.dataset.label.classes)) if classified else Regression()
    preprocessing = fit(
        spec.preparations,
        (rows.features for rows in data.train.batches()),
        spec.seed,
        spans=spec.spans(),
        resizes=spec.resizes(),
        texts=data.categories,
    )
    preprocessing.write(folder)
    preprocessor = Preprocessor(preprocessing)
    label = task.label_scale(data.train, normalise=spec.normalise_label)
    network = build_mlp(preprocessor.width, task.outputs, parameters)
    model = Normalised(network, preprocessor, label)
    require_exportable(model)
    model.to(device)

    trainer = Trainer(
        model=model,
        task=task,
        train_rows=data.train.to(device),
        validation_rows=data.validation.to(device),
        device=device,
        parameters=parameters,
        seed=spec.seed,
        checkpoints=Checkpoints(
            ObjectStore.from_uri(spec.store_uri), spec.job, spec.attempt, spec.fingerprint()
        ),
        pipe=pipe,
        stopping=stopping,
    )
    with tracing.span(names.SPAN_TRAIN):
        stopped_early = trainer.train()
    with tracing.span(names.SPAN_EVALUATE):
        metrics = evaluate(model.cpu().eval(), task, data)
        for name, value in metrics.items():
            print(f"{name} {value:.6g}", flush=True)
    with tracing.span(names.SPAN_EXPORT):
        signature = export(
            model,
            spec.dataset,
            data.categories,
            next(data.train.batches()).features,
            folder / MODEL_FILE,
            classified=classified,
        )

    Report(
        model=spec.pipeline,
        job=spec.job,
        run=spec.run,
        recipe=spec.recipe,
        parameters=parameters.model_dump(mode="json"),
        dataset=spec.dataset,
        shares=spec.shares,
        rows=rows,
        preparations=spec.preparations,
        normalise_label=spec.normalise_label,
        seed=spec.seed,
        device=str(device),
        epochs=trainer.epoch,
        resumed_epoch=trainer.resumed_epoch,
        stopped_early=stopped_early,
        best_epoch=trainer.best_epoch,
        training_seconds=trainer.seconds,
        losses=tuple(trainer.losses),
        metrics=metrics,
        signature=signature,
        code_version=version("headrace"),
        torch_version=torch.__version__,
    ).write(folder)


@torch.no_grad()
def evaluate(model: Normalised, task: Task, data: Data) -> dict[str, float]:
    """Metrics of every split that has rows, by "split/metric".

    Of a split that is streamed, answers and labels of all rows are in memory, and a few rows' features.
    """
    return {
        f"{split.name}/{name}": value
        for split in data.splits()
        if len(split)
        for name, value in task.metrics(model, *_answers(model, split)).items()
    }


def _answers(model: Normalised, split: Split) -> tuple[Tensor, Tensor]:
    pairs = [(model(features), labels) for features, labels in split.batches()]
    outputs, labels = zip(*pairs, strict=True)
    return torch.cat(outputs), torch.cat(labels)
