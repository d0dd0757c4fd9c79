"""The training loop: epochs over the training split, with early stopping and checkpoints."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from headrace.recipes.mlp import MlpParameters
from headrace.training.run.checkpoints import Checkpoint, Checkpoints
from headrace.training.run.data import Split
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
    train_rows: Split
    validation_rows: Split
    device: torch.device
    parameters: MlpParameters
    seed: int
    checkpoints: Checkpoints
    pipe: Pipe
    stopping: Callable[[], bool]
    epoch: int = 0
    resumed_epoch: int = 0
    # Done of the epoch that is not at its end.
    batches: int = 0
    best_loss: float = math.inf
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    losses: list[EpochLoss] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Make the optimiser for the model's weights, and the order of the rows."""
        self.optimizer = _optimizer(self.model.network, self.parameters)
        # Without a size, or with a larger one, each step takes all rows, however many batches they come in.
        size = self.parameters.batch_size or len(self.train_rows)
        self.whole = size >= len(self.train_rows)
        self.order = self.train_rows.order(size, self.seed)
        # The losses of the rows of the epoch that is not at its end.
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.began = self.saved = time.monotonic()
        self.seconds_before = 0.0

    def train(self) -> bool:
        """Train from the last checkpoint, if there is one, to the end; whether it stopped early.

        Leaves the best weights by validation loss where early stopping is on. Raises RunError, Interrupted.
        """
        self._resume()
        self.pipe.send(Started(epochs=self.parameters.epochs, resumed_epoch=self.resumed_epoch))
        self.began = said = self.saved = time.monotonic()
        self.seconds_before = self.seconds
        stopped_early = False
        while self.epoch < self.parameters.epochs and not stopped_early:
            loss = self._train_epoch()
            self.epoch += 1
            if not math.isfinite(loss):
                raise Diverged(
                    f"the loss is {loss} after epoch {self.epoch}; a smaller learning_rate may help"
                )
            stopped_early = self._judge(loss)
            now = self._clocked()
            last = stopped_early or self.epoch == self.parameters.epochs
            self._log(loss, last=last)
            if last or now - said >= PROGRESS_SECONDS:
                said = now
                done = self.epoch - self.resumed_epoch
                remaining = 0.0 if last else (now - self.began) / done * (self.parameters.epochs - self.epoch)
                self.pipe.send(
                    Progressed(
                        epoch=self.epoch,
                        epochs=self.parameters.epochs,
                        loss=loss,
                        remaining_seconds=remaining,
                    )
                )
            every = self.parameters.checkpoint_every
            if not last:
                self._save_where_due(wanted=bool(every and self.epoch % every == 0))
        if self.parameters.early_stopping is not None and self.best_weights:
            self.model.network.load_state_dict(self.best_weights)
        return stopped_early

    def _train_epoch(self) -> float:
        """One pass, or what is left of it, over the training split in an order of its own; the mean loss."""
        self.model.train()
        rows = len(self.train_rows)
        self.optimizer.zero_grad(set_to_none=True)
        for features, labels in self._batches():
            loss = self.task.loss(self.model, self.model(features), labels)
            self.loss_sum += loss.detach() * len(features)
            self.batches += 1
            if self.whole:
                # Gradients add up to that of the mean over all rows.
                (loss * (len(features) / rows)).backward()  # type: ignore[no-untyped-call]
                continue
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if self.order.resumable:
                self._save_where_due()
        if self.whole:
            self.optimizer.step()
        mean = float(self.loss_sum / rows)
        self.batches = 0
        self.loss_sum.zero_()
        return mean

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for features, labels in self.order.rest():
            yield features.to(self.device), labels.to(self.device)

    def _save_where_due(self, *, wanted: bool = False) -> None:
        """Save a checkpoint where it is wanted or time for one. Raises Interrupted, after saving."""
        now = self._clocked()
        stopping = self.stopping()
        if stopping or wanted or now - self.saved >= self.parameters.checkpoint_seconds:
            self._save()
            self.saved = now
        if stopping:
            raise Interrupted

    def _clocked(self) -> float:
        now = time.monotonic()
        self.seconds = self.seconds_before + now - self.began
        return now

    def _judge(self, loss: float) -> bool:
        """Note the epoch's losses; whether patience is at its end."""
        validation = self._loss_on(self.validation_rows)
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
        total = 0.0
        for batch in rows.batches():
            features, labels = (tensor.to(self.device) for tensor in batch)
            total += float(self.task.loss(self.model, self.model(features), labels)) * len(features)
        return total / len(rows)

    def _log(self, loss: float, *, last: bool) -> None:
        if last or self.epoch % self.parameters.log_every == 0:
            validation = self.losses[-1].validation
            more = "" if validation is None else f"  validation {validation:.6g}"
            print(f"epoch {self.epoch}/{self.parameters.epochs}  loss {loss:.6g}{more}", flush=True)

    def _save(self) -> None:
        state: dict[str, Any] = {
            "network": self.model.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "order": self.order.state_dict(),
            "loss_sum": float(self.loss_sum),
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
            "losses": [entry.model_dump() for entry in self.losses],
            "seconds": self.seconds,
        }
        self.checkpoints.save(Checkpoint(self.epoch, state, self.batches))

    def _resume(self) -> None:
        checkpoint = self.checkpoints.load()
        if checkpoint is None:
            return
        state = checkpoint.state
        self.model.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.order.load_state_dict(state["order"])
        self.loss_sum.fill_(state["loss_sum"])
        self.batches = checkpoint.batches
        self.best_loss, self.best_epoch = state["best_loss"], state["best_epoch"]
        self.best_weights = state["best_weights"]
        self.losses = [EpochLoss(**entry) for entry in state["losses"]]
        self.seconds = state["seconds"]
        self.epoch = self.resumed_epoch = checkpoint.epoch
        within = f" and {checkpoint.batches} batches" if checkpoint.batches else ""
        print(f"resumed after epoch {checkpoint.epoch}{within}", flush=True)


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
