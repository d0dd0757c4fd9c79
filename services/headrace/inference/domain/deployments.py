"""Deployments: a name that clients call, and the versions behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from headrace.inference.domain.rollouts import Plan, Rollout


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

    `dataset`: which one it was trained on; empty where that is not known, its version 0 then. `features` and
    `texts` name the columns of its inputs.
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
    dataset_version: int = 0
    features: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Deployment:
    """What clients call `name`. `traffic` is each version's share, per cent; `loaded` what Triton has."""

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

    @property
    def stable(self) -> int:
        """The version that a rollout in progress starts from, or that has all traffic; 0 for none."""
        if self.rollout is not None and not self.rollout.state.ended:
            return self.rollout.from_version
        return max(self.traffic, default=0)

    @property
    def ready(self) -> bool:
        """Every version with traffic is loaded, and there is one."""
        return bool(self.traffic) and set(self.traffic) <= self.loaded


def expected_signature(inputs: Sequence[Tensor]) -> str:
    """What a caller is told after a wrong request."""
    return "; ".join(tensor.text() for tensor in inputs)
