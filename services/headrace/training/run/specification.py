"""What a run is told to do: `spec.json` in its folder."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict, JsonValue

from headrace.splits import Shares
from headrace.tensors import TensorType

SPEC_FILE: Final = "spec.json"
# Higher wherever a release computes something else from the same specification, or keeps another state of it.
COMPUTATION: Final = 3
# What is read of a table that is held, keys included; more is streamed. Loading takes five times as much.
IN_MEMORY_BYTES: Final = 128 << 20
# Inputs that are named one by one; of more, a tensor's share a name: a signature travels in events.
MAX_NAMED: Final = 1 << 14


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Normalisation: TypeAlias = Literal["none", "standard", "min_max", "robust"]
MissingRule: TypeAlias = Literal["refuse", "mean", "median", "constant"]
Encoding: TypeAlias = Literal["number", "one_hot", "ordinal"]


class Preparation(_Frozen):
    """How one feature is prepared; scheduling's API says what each of these means."""

    feature: str
    missing: MissingRule = "refuse"
    constant: float = 0.0
    indicator: bool = False
    clip_min: float | None = None
    clip_max: float | None = None
    log: bool = False
    normalise: Normalisation = "none"
    encode: Encoding = "number"
    # Of a text, instead of `constant`.
    text_constant: str | None = None
    # To height and width.
    resize: tuple[int, int] | None = None
    per_channel: bool = False


class Resize(_Frozen):
    """An image, [height, width, channels], that gets another size; `first` is its first value in a row."""

    feature: str
    first: int
    height: int
    width: int
    channels: int
    to_height: int
    to_width: int

    @property
    def values(self) -> int:
        """How many values the model receives of it."""
        return self.height * self.width * self.channels

    @property
    def to_values(self) -> int:
        """How many are left of them."""
        return self.to_height * self.to_width * self.channels


class Span(NamedTuple):
    """A feature's values in a row, after resizing: so many, next to each other.

    Value i is normalised together with every `apart`-th one before and behind it: each by itself where
    `apart` is `values`, else by channel.
    """

    values: int = 1
    apart: int = 1


class Column(_Frozen):
    """A column of the table. `type` is the schema's word: float32, int8, string, tensor, ..."""

    name: str
    type: str
    tensor: TensorType | None = None

    @property
    def is_text(self) -> bool:
        """Whether the model receives it as text, and not as numbers."""
        return self.type == "string"

    @property
    def width(self) -> int:
        """How many values the model receives of it."""
        return self.tensor.values if self.tensor else 1

    def names(self) -> tuple[str, ...]:
        """Name what the model receives of it: a tensor's values one by one, image[0,0] first."""
        if self.tensor is None:
            return (self.name,)
        places = itertools.product(*map(range, self.tensor.shape))
        return tuple(f"{self.name}[{','.join(map(str, place))}]" for place in places)

    def name_of_all(self) -> str:
        """Name them together, a tensor's as NumPy slices it: image[0:224,0:224,0:3]."""
        if self.tensor is None:
            return self.name
        return f"{self.name}[{','.join(f'0:{size}' for size in self.tensor.shape)}]"

    def resized(self, size: tuple[int, int] | None) -> Column:
        """Return what is prepared of it: the column itself, or an image of that height and width."""
        if self.tensor is None or size is None:
            return self
        smaller = TensorType(self.tensor.dtype, (*size, *self.tensor.shape[2:]))
        return self.model_copy(update={"tensor": smaller})


class Label(Column):
    """The column to predict. `classes` are JSON values; empty: any number."""

    classes: tuple[str, ...] = ()


class Dataset(_Frozen):
    """A dataset version: exactly these rows."""

    name: str
    version: int
    table_uri: str
    table_version: int
    content_hash: str
    key: str
    features: tuple[Column, ...]
    label: Label

    @property
    def width(self) -> int:
        """How many values the model receives of a row."""
        return sum(column.width for column in self.features)

    def numbers(self) -> tuple[str, ...]:
        """Name the numbers that the model receives, in their order; of many, each tensor's together."""
        columns = [column for column in self.features if not column.is_text]
        if self.width > MAX_NAMED:
            return tuple(column.name_of_all() for column in columns)
        return tuple(name for column in columns for name in column.names())

    def texts(self) -> tuple[str, ...]:
        """Name the texts that the model receives, in their order."""
        return tuple(column.name for column in self.features if column.is_text)


class RunSpec(_Frozen):
    """Everything that a run needs to know."""

    run: str
    job: str
    attempt: int
    pipeline: str
    node: str
    recipe: str
    parameters: dict[str, JsonValue]
    dataset: Dataset
    shares: Shares
    # One for each of the dataset's features, in their order.
    preparations: tuple[Preparation, ...]
    normalise_label: bool
    seed: int
    store_uri: str
    in_memory_bytes: int = IN_MEMORY_BYTES
    cpu: float = 1.0
    gpu: int = 0

    def encoded_texts(self) -> tuple[str, ...]:
        """Name the text features that have categories."""
        return tuple(
            column.name for column, wish in self._wishes() if column.is_text and wish.encode != "number"
        )

    def spans(self) -> tuple[Span, ...]:
        """Return what each preparation is for."""
        spans = []
        for column, wish in self._wishes():
            values = column.resized(wish.resize).width
            apart = column.tensor.channels if column.tensor and wish.per_channel else values
            spans.append(Span(values, apart))
        return tuple(spans)

    def resizes(self) -> tuple[Resize, ...]:
        """Return the images that get another size."""
        resizes, first = [], 0
        for column, wish in self._wishes():
            if column.tensor is not None and wish.resize is not None:
                height, width = column.tensor.shape[:2]
                to_height, to_width = wish.resize
                resizes.append(
                    Resize(
                        feature=column.name,
                        first=first,
                        height=height,
                        width=width,
                        channels=column.tensor.channels,
                        to_height=to_height,
                        to_width=to_width,
                    )
                )
            first += column.width
        return tuple(resizes)

    def _wishes(self) -> Iterator[tuple[Column, Preparation]]:
        return zip(self.dataset.features, self.preparations, strict=True)

    def fingerprint(self) -> str:
        """Identify what is computed: a checkpoint is of use only to a run with the same fingerprint."""
        same = self.model_dump(
            mode="json",
            include={
                "recipe",
                "parameters",
                "dataset",
                "shares",
                "preparations",
                "normalise_label",
                "seed",
                "in_memory_bytes",
            },
        )
        same["computation"] = COMPUTATION
        # Sorted: parameters come from a Protobuf map, whose order changes from one message to the next.
        return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()

    @classmethod
    def read(cls, folder: Path) -> RunSpec:
        """Read a run folder's specification."""
        return cls.model_validate_json((folder / SPEC_FILE).read_bytes())

    def write(self, folder: Path) -> None:
        """Write the specification into a run folder."""
        (folder / SPEC_FILE).write_text(self.model_dump_json(indent=2))
