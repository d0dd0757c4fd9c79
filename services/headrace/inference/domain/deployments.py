"""Deployments: a name that clients call, and the versions behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from headrace.inference.domain.drift import DEFAULT_RULES, DriftRules
from headrace.inference.domain.rollouts import Plan, Rollout
from headrace.inference.domain.scaling import ALL_SERVERS, EVERYWHERE, Scale, Scaling
from headrace.inference.domain.serving import DEFAULTS, Serving
from headrace.model_formats import ModelFormat

ANSWER: Final = "label"
"""The output that is a classifier's answer; of other models it is the first one that there is."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a model's signature, in the protocol's words; the first size is the batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def text(self) -> str:
        """As errors show it: features FP32 [-1,30]."""
        return f"{self.name} {self.datatype} [{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """A promoted model version: where its file lies, and what it takes and gives.

    `dataset`, `dataset_version`: what it was trained on; empty and 0 where that is not known. `features`,
    `texts`: the dataset's fields in the order of the columns of the inputs of these names. `size`: of the
    file, in bytes; 0 where that is not known.
    """

    model: str
    version: int
    uri: str
    sha256: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    classes: tuple[str, ...]
    signature: bytes
    traceparent: str
    dataset: str = ""
    format: ModelFormat = ModelFormat.ONNX
    dataset_version: int = 0
    features: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    size: int = 0


@dataclass(frozen=True, slots=True)
class Deployment:
    """What clients call `name`. `traffic` is each version's share, per cent; `loaded` what Triton has.

    `serving`: how its versions are to be served; `served`: how those that are loaded are. `scaling`: bounds
    of what follows the load; `scale`: on which servers it is to be; `placed`: on which ones requests find it,
    and since when. `demanded`: a request found it on none, and waits.
    """

    name: str
    model: str
    plan: Plan
    create_time: datetime
    update_time: datetime
    traffic: Mapping[int, int] = field(default_factory=dict)
    loaded: frozenset[int] = frozenset()
    rollout: Rollout | None = None
    message: str = ""
    deleted: bool = False
    drift: DriftRules = DEFAULT_RULES
    serving: Serving = DEFAULTS
    served: Serving = DEFAULTS
    scaling: Scaling = EVERYWHERE
    scale: Scale = ALL_SERVERS
    placed: Scale = ALL_SERVERS
    placed_time: datetime | None = None
    demanded: bool = False

    @property
    def wanted_serving(self) -> Serving:
        """How its versions are to be served now: with as many processes as the load asks for."""
        return replace(self.serving, instances=self.scale.instances or self.serving.instances)

    @property
    def is_new(self) -> bool:
        """No version of it was ever loaded, or is being loaded."""
        return not self.traffic and self.rollout is None

    @property
    def cold(self) -> bool:
        """Requests find it nowhere: the first one has it loaded, and waits."""
        return self.placed.replicas == 0

    @property
    def stable(self) -> int:
        """The version that a rollout in progress starts from, or that has all traffic; 0 for none."""
        if self.rollout is not None and not self.rollout.state.ended:
            return self.rollout.from_version
        return max(self.traffic, default=0)

    @property
    def ready(self) -> bool:
        """There is a version with traffic, and each is loaded, or will be when it is asked."""
        return bool(self.traffic) and (self.cold or set(self.traffic) <= self.loaded)


def row_values(inputs: Sequence[Tensor]) -> int:
    """How many values one row has."""
    return sum(math.prod(tensor.shape[1:]) for tensor in inputs)


def expected_signature(inputs: Sequence[Tensor]) -> str:
    """What a caller is told after a wrong request."""
    return "; ".join(tensor.text() for tensor in inputs)
