"""The training loop: epochs over the training split, with early stopping and checkpoints."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from headrace.recipes.mlp import MlpParameters
from headrace.training.run.checkpoints import Checkpoint, Checkpoints
from headrace.training.run.data import Data, Split
from headrace.training.run.errors import Diverged, Interrupted
from headrace.training.run.messages import Pipe, Progressed, Started
from headrace.training.run.model import Normalised
from headrace.training.run.report import EpochLoss
from headrace.training.run.tasks import Task

# A terminal or a topic wants no more than this many messages a second.
PROGRESS_SECONDS = 0.2


@dataclass
class Trainer:
    """Everything that changes while a model is trained, and how it changes."""

    model: Normalised
    task: Task
    data: Data
    parameters: MlpParameters
    generator: torch.Generator
    checkpoints: Checkpoints
    pipe: Pipe
    stopping: Callable[[], bool]
    epoch: int = 0
    resumed_epoch: int = 0
    best_loss: float = math.inf
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    losses: list[EpochLoss] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Make the optimiser for the model's weights."""
        self.optimizer = _optimizer(self.model.network, self.parameters)

    def train(self) -> bool:
        """Train from the last checkpoint, if there is one, to the end; whether it stopped early.

        Leaves the best weights by validation loss where early stopping is on. Raises Diverged, Interrupted.
        """
        self._resume()
        self.pipe.send(Started(epochs=self.parameters.epochs, resumed_epoch=self.resumed_epoch))
        began = said = saved = time.monotonic()
        before = self.seconds
        stopped_early = False
        while self.epoch < self.parameters.epochs and not stopped_early:
            loss = self._train_epoch()
            self.epoch += 1
            if not math.isfinite(loss):
                raise Diverged(
                    f"the loss is {loss} after epoch {self.epoch}; a smaller learning_rate may help"
                )
            stopped_early = self._judge(loss)
            now = time.monotonic()
            self.seconds = before + now - began
            last = stopped_early or self.epoch == self.parameters.epochs
            self._log(loss, last=last)
            if last or now - said >= PROGRESS_SECONDS:
                said = now
                done = self.epoch - self.resumed_epoch
                remaining = 0.0 if last else (now - began) / done * (self.parameters.epochs - self.epoch)
                self.pipe.send(
                    Progressed(
                        epoch=self.epoch,
                        epochs=self.parameters.epochs,
                        loss=loss,
                        remaining_seconds=remaining,
                    )
                )
            every = self.parameters.checkpoint_every
            due = now - saved >= self.parameters.checkpoint_seconds or (every and self.epoch % every == 0)
            if self.stopping() and not last:
                self._save()
                raise Interrupted
            if due and not last:
                saved = now
                self._save()
        if self.parameters.early_stopping is not None and self.best_weights:
            self.model.network.load_state_dict(self.best_weights)
        return stopped_early

    def _train_epoch(self) -> float:
        """One pass over the training split in an order of its own; the mean loss."""
        self.model.train()
        rows = self.data.train
        size = self.parameters.batch_size or len(rows)
        if size >= len(rows):
            # The whole split at once: its order does not matter.
            batches: list[slice | Tensor] = [slice(None)]
        else:
            order = torch.randperm(len(rows), generator=self.generator).to(rows.features.device)
            batches = list(torch.split(order, size))
        total = torch.zeros((), device=rows.features.device)
        for batch in batches:
            features, labels = rows.features[batch], rows.labels[batch]
            loss = self.task.loss(self.model, self.model(features), labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += loss.detach() * len(features)
        return float(total / len(rows))

    def _judge(self, loss: float) -> bool:
        """Note the epoch's losses; whether patience is at its end."""
        validation = self._loss_on(self.data.validation)
        self.losses.append(EpochLoss(epoch=self.epoch, train=loss, validation=validation))
        early = self.parameters.early_stopping
        judged = loss if validation is None else validation
        if judged < self.best_loss - (early.min_delta if early else 0.0):
            self.best_loss, self.best_epoch = judged, self.epoch
            if early is not None:
                self.best_weights = copy.deepcopy(self.model.network.state_dict())
        return early is not None and self.epoch - self.best_epoch >= early.patience

    @torch.no_grad()
    def _loss_on(self, rows: Split) -> float | None:
        if not len(rows):
            return None
        self.model.eval()
        return float(self.task.loss(self.model, self.model(rows.features), rows.labels))

    def _log(self, loss: float, *, last: bool) -> None:
        if last or self.epoch % self.parameters.log_every == 0:
            validation = self.losses[-1].validation
            more = "" if validation is None else f"  validation {validation:.6g}"
            print(f"epoch {self.epoch}/{self.parameters.epochs}  loss {loss:.6g}{more}", flush=True)

    def _save(self) -> None:
        state: dict[str, Any] = {
            "network": self.model.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
            "losses": [entry.model_dump() for entry in self.losses],
            "seconds": self.seconds,
        }
        self.checkpoints.save(Checkpoint(self.epoch, state))

    def _resume(self) -> None:
        checkpoint = self.checkpoints.load()
        if checkpoint is None:
            return
        state = checkpoint.state
        self.model.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.best_loss, self.best_epoch = state["best_loss"], state["best_epoch"]
        self.best_weights = state["best_weights"]
        self.losses = [EpochLoss(**entry) for entry in state["losses"]]
        self.seconds = state["seconds"]
        self.epoch = self.resumed_epoch = checkpoint.epoch
        print(f"resumed after epoch {checkpoint.epoch}", flush=True)


def _optimizer(network: nn.Module, parameters: MlpParameters) -> torch.optim.Optimizer:
    if parameters.optimizer == "adam":
        return torch.optim.Adam(
            network.parameters(), lr=parameters.learning_rate, weight_decay=parameters.weight_decay
        )
    return torch.optim.SGD(
        network.parameters(),
        lr=parameters.learning_rate,
        momentum=parameters.momentum,
        weight_decay=parameters.weight_decay,
    )
