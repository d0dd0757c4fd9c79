"""What is learned, classes or a number: how the loss is taken and what is measured."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from sklearn import metrics
from torch import Tensor, nn
from torch.nn import functional

from headrace.training.run.data import Split
from headrace.training.run.model import Normalised
from headrace.training.run.scale import Scale


class Task(Protocol):
    """What the loop and the evaluation need to know of the label."""

    outputs: int

    def label_scale(self, train: Split, *, normalise: bool) -> Scale:
        """Fit the label's scale on the training split."""

    def loss(self, model: Normalised, output: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch."""

    def metrics(self, model: Normalised, output: Tensor, labels: Tensor) -> dict[str, float]:
        """Measure the model's output on a whole split, which is not empty."""


class Classification:
    """One of several classes, by cross-entropy."""

    def __init__(self, classes: int) -> None:
        self.outputs = classes

    def label_scale(self, train: Split, *, normalise: bool) -> Scale:
        """Classes have no scale."""
        return Scale.identity(1)

    def loss(self, model: Normalised, output: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of logits and class indices."""
        return functional.cross_entropy(output, labels)

    def metrics(self, model: Normalised, output: Tensor, labels: Tensor) -> dict[str, float]:
        """Return accuracy, recall, precision, f1, roc_auc and loss.

        Of two classes the last one is the positive one; of more, the means over the classes count.
        roc_auc is left out where a class does not occur in the split.
        """
        truth = labels.cpu().numpy()
        probabilities = nn.functional.softmax(output, dim=-1).cpu().numpy()
        predicted = probabilities.argmax(axis=-1)
        binary = self.outputs == 2
        how = {"average": "binary" if binary else "macro", "zero_division": 0.0}
        measured = {
            "accuracy": metrics.accuracy_score(truth, predicted),
            "recall": metrics.recall_score(truth, predicted, **how),
            "precision": metrics.precision_score(truth, predicted, **how),
            "f1": metrics.f1_score(truth, predicted, **how),
            "loss": self.loss(model, output, labels).item(),
        }
        if len(np.unique(truth)) == self.outputs:
            measured["roc_auc"] = (
                metrics.roc_auc_score(truth, probabilities[:, 1])
                if binary
                else metrics.roc_auc_score(truth, probabilities.astype(np.float64), multi_class="ovr")
            )
        return {name: float(value) for name, value in measured.items()}


class Regression:
    """A number, by mean squared error."""

    outputs = 1

    def label_scale(self, train: Split, *, normalise: bool) -> Scale:
        """Mean 0 and variance 1 on the training split, where asked for."""
        return Scale.fitted(rows.labels for rows in train.batches()) if normalise else Scale.identity(1)

    def loss(self, model: Normalised, output: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error in normalised units."""
        return functional.mse_loss(output, (labels - model.label_mean) / model.label_deviation)

    def metrics(self, model: Normalised, output: Tensor, labels: Tensor) -> dict[str, float]:
        """Return mse, mae and r2 in the label's unit; *_normalised and loss in the network's."""
        truth = labels.cpu().double()
        error = (model.in_label_unit(output).cpu().double() - truth).numpy()
        normalised = error / model.label_deviation.cpu().double().numpy()
        measured = {
            "mse": np.mean(error**2),
            "mae": np.mean(np.abs(error)),
            "mse_normalised": np.mean(normalised**2),
            "mae_normalised": np.mean(np.abs(normalised)),
            "loss": self.loss(model, output, labels).item(),
        }
        if len(truth) > 1:
            measured["r2"] = metrics.r2_score(truth.numpy(), truth.numpy() + error)
        return {name: float(value) for name, value in measured.items()}
