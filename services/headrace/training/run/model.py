"""The network, and the module around it that takes raw features and answers in the label's own unit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from headrace.recipes.mlp import MlpParameters
from headrace.training.run.preprocessing import Preprocessor
from headrace.training.run.scale import Scale

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


def build_mlp(inputs: int, outputs: int, parameters: MlpParameters) -> nn.Sequential:
    """Linear layers of the hidden sizes with the activation between them; the last layer is bare."""
    sizes: Sequence[int] = (inputs, *parameters.hidden, outputs)
    layers: list[nn.Module] = []
    for size, following in itertools.pairwise(sizes):
        layers += [nn.Linear(size, following), ACTIVATIONS[parameters.activation]()]
    return nn.Sequential(*layers[:-1])


class Normalised(nn.Module):
    """A network between the preparation of its features and the scale of its answer; both are part of it."""

    label_mean: Tensor
    label_deviation: Tensor

    def __init__(self, network: nn.Sequential, preprocessor: Preprocessor, label: Scale) -> None:
        super().__init__()
        self.network = network
        self.preprocessor = preprocessor
        self.register_buffer("label_mean", label.mean)
        self.register_buffer("label_deviation", label.deviation)

    def forward(self, features: Tensor) -> Tensor:
        """Return the network's own output (logits, or labels in normalised units) for raw features."""
        output: Tensor = self.network(self.preprocessor(features))
        return output

    def in_label_unit(self, output: Tensor) -> Tensor:
        """Return a regression's output in the label's own unit."""
        return output * self.label_deviation + self.label_mean
