"""Raw features to the columns that the network sees: fitted on the training split, part of the model.

Missing values are NaN. What is fitted leaves them out, so that one pass suffices: what stands for them does
not change it. Quantiles are those of a sample of each feature's values, drawn with the run's seed, and
exact while the split has no more of them than the sample holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from headrace.training.run.errors import UnusableDataset
from headrace.training.run.report import PREPROCESS_FILE
from headrace.training.run.resizing import Resizer
from headrace.training.run.scale import Moments
from headrace.training.run.specification import Encoding, Preparation, Resize

SAMPLED_VALUES: Final = 100_000
MAX_CATEGORIES: Final = 1_000
FLOAT32: Final = torch.finfo(torch.float32)
# What is divided by less is beyond float32.
SMALLEST_SPREAD: Final = 1e-30
QUARTILES: Final = (0.25, 0.5, 0.75)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FittedFeature(_Frozen):
    """One feature's preparation, in the order in which it is done.

    A missing value becomes `fill` where there is one; then values are moved between `clip_min` and
    `clip_max`; then, with `log`, sign(x) ln(1 + |x|); then (x - centre) / spread. One that is encoded is
    looked up in `categories` instead.
    """

    feature: str
    fill: float | None
    indicator: bool
    clip_min: float | None
    clip_max: float | None
    log: bool
    centre: float
    spread: float
    encode: Encoding
    categories: tuple[int, ...]


class Preprocessing(_Frozen):
    """`preprocess.json`: how raw features, in this order, become what the network sees.

    Images in `resizes` get another size first, and `features` has their new values in the place of the raw
    ones. Its columns: the features that stay numbers, in their order; then for each one-hot feature its
    categories; then each ordinal feature; then the indicators.
    """

    version: Literal[1] = 1
    resizes: tuple[Resize, ...] = ()
    features: tuple[FittedFeature, ...]

    def columns(self) -> list[str]:
        """Names of the network's columns."""
        return [
            *(entry.feature for entry in self.features if entry.encode == "number"),
            *(
                f"{entry.feature}={category}"
                for entry in self.features
                if entry.encode == "one_hot"
                for category in entry.categories
            ),
            *(entry.feature for entry in self.features if entry.encode == "ordinal"),
            *(f"{entry.feature} is missing" for entry in self.features if entry.indicator),
        ]

    def write(self, folder: Path) -> None:
        """Write it into a run's folder."""
        (folder / PREPROCESS_FILE).write_text(self.model_dump_json(indent=2))


def fit(
    preparations: Sequence[Preparation],
    batches: Iterable[Tensor],
    seed: int,
    *,
    resizes: Sequence[Resize] = (),
    pools: Sequence[int] = (),
) -> Preprocessing:
    """Measure [rows, raw values] batches of the training split. Raises UnusableDataset.

    `preparations` has one for each value, of images in `resizes` as they are afterwards. `pools` numbers
    those whose mean, deviation and extremes are measured together; empty: each by itself.
    """
    resize = Resizer(resizes, len(preparations))
    encoded = [index for index, wish in enumerate(preparations) if wish.encode != "number"]
    sampled = [
        index
        for index, wish in enumerate(preparations)
        if wish.missing == "median" or wish.normalise == "robust"
    ]
    squeeze = _Squeeze(preparations)
    raw, squeezed = Moments(), Moments()
    sample = _Sample(seed, sampled)
    categories: dict[int, Tensor] = {index: torch.empty(0) for index in encoded}
    for received in batches:
        batch = resize(received)
        raw.add(batch)
        squeezed.add(squeeze(batch))
        if sampled:
            sample.add(batch)
        for index in encoded:
            values = batch[:, index]
            together = torch.cat([categories[index], values[~values.isnan()]])
            found: Tensor = together.unique()  # type: ignore[no-untyped-call]
            if len(found) > MAX_CATEGORIES:
                raise UnusableDataset(
                    f"{preparations[index].feature} has more than {MAX_CATEGORIES:,} different values in the "
                    "training split; encode features with fewer, or leave it a number"
                )
            categories[index] = found
    for wish, count in zip(preparations, raw.count.tolist(), strict=True):
        if not count:
            raise UnusableDataset(
                f"{wish.feature} has no value in any row of the training split; leave it out of the features"
            )
    # Of the other features they are not asked for.
    quantiles = torch.zeros(len(QUARTILES), len(preparations), dtype=torch.float64)
    if sampled:
        quantiles[:, sampled] = sample.quantiles()
    low, median, high = quantiles[0], quantiles[1], quantiles[2]
    # All of it keeps the order of values, and so their quantiles.
    low_squeezed, median_squeezed, high_squeezed = (squeeze(row[None])[0] for row in (low, median, high))
    squeezed = squeezed.pooled(pools)
    deviation = squeezed.deviation()
    measured: dict[str, tuple[Tensor, Tensor]] = {
        "none": (torch.zeros_like(deviation), torch.ones_like(deviation)),
        "standard": (squeezed.mean, deviation),
        "min_max": (squeezed.smallest, squeezed.largest - squeezed.smallest),
        "robust": (median_squeezed, high_squeezed - low_squeezed),
    }
    fills = {"mean": raw.mean, "median": median}

    def entry(index: int, wish: Preparation) -> FittedFeature:
        centres, spreads = measured[wish.normalise]
        fill = wish.constant if wish.missing == "constant" else None
        if wish.missing in fills:
            fill = float(fills[wish.missing][index])
        return FittedFeature(
            feature=wish.feature,
            fill=fill,
            indicator=wish.indicator,
            clip_min=wish.clip_min,
            clip_max=wish.clip_max,
            log=wish.log,
            centre=float(centres[index]),
            spread=_spread(float(spreads[index]), float(centres[index])),
            encode=wish.encode,
            categories=tuple(int(value) for value in categories[index]) if index in categories else (),
        )

    return Preprocessing(
        resizes=tuple(resizes), features=tuple(entry(index, wish) for index, wish in enumerate(preparations))
    )


def _spread(measured: float, centre: float) -> float:
    """Return 1, which only moves a feature, where float32 cannot tell its values apart."""
    return measured if measured > max(abs(centre) * FLOAT32.eps, SMALLEST_SPREAD) else 1.0


class Preprocessor(nn.Module):
    """What `Preprocessing` says, over tensors: [rows, raw values] FP32 to [rows, columns] FP32."""

    def __init__(self, fitted: Preprocessing) -> None:
        super().__init__()
        features = fitted.features
        self.width = len(fitted.columns())
        self._resizer = Resizer(fitted.resizes, len(features))
        self._numbers = [index for index, entry in enumerate(features) if entry.encode == "number"]
        self._indicators = [index for index, entry in enumerate(features) if entry.indicator]
        self._encoded = [
            (index, entry.encode) for index, entry in enumerate(features) if entry.encode != "number"
        ]
        # One-hot features first: the order of the columns.
        self._encoded.sort(key=lambda pair: pair[1] != "one_hot")
        self._all_numbers = len(self._numbers) == len(features)
        self._fills = any(entry.fill is not None for entry in features)
        numbers = [features[index] for index in self._numbers]
        self._squeeze = _Squeeze(numbers)
        nan = float("nan")
        self.register_buffer(
            "fill", torch.tensor([nan if entry.fill is None else entry.fill for entry in features])
        )
        self.register_buffer("centre", torch.tensor([entry.centre for entry in numbers]))
        self.register_buffer("spread", torch.tensor([entry.spread for entry in numbers]))
        for index, _ in self._encoded:
            known = torch.tensor(features[index].categories, dtype=torch.float32)
            self.register_buffer(f"categories_{index}", known)
            self.register_buffer(f"places_{index}", torch.arange(1.0, len(known) + 1))

    fill: Tensor
    centre: Tensor
    spread: Tensor

    def forward(self, raw: Tensor) -> Tensor:
        """Prepare raw features; NaN is a missing value."""
        raw = self._resizer(raw)
        filled = torch.where(torch.isnan(raw), self.fill, raw) if self._fills else raw
        columns: list[Tensor] = []
        if self._numbers:
            numbers = filled if self._all_numbers else filled[:, self._numbers]
            columns.append((self._squeeze(numbers) - self.centre) / self.spread)
        for index, encode in self._encoded:
            known: Tensor = getattr(self, f"categories_{index}")
            same = (filled[:, index : index + 1] == known).float()
            if encode == "one_hot":
                columns.append(same)
            else:
                places: Tensor = getattr(self, f"places_{index}")
                columns.append((same * places).sum(dim=1, keepdim=True) - 1)
        if self._indicators:
            columns.append(torch.isnan(raw[:, self._indicators]).float())
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)


class _Squeeze(nn.Module):
    """Clip, then log, where features ask for it."""

    def __init__(self, features: Sequence[Preparation | FittedFeature]) -> None:
        super().__init__()
        top = FLOAT32.max
        low = [-top if entry.clip_min is None else entry.clip_min for entry in features]
        high = [top if entry.clip_max is None else entry.clip_max for entry in features]
        self._clips = any(entry.clip_min is not None or entry.clip_max is not None for entry in features)
        self._logs = any(entry.log for entry in features)
        self.register_buffer("low", torch.tensor(low))
        self.register_buffer("high", torch.tensor(high))
        self.register_buffer("log", torch.tensor([entry.log for entry in features], dtype=torch.bool))

    low: Tensor
    high: Tensor
    log: Tensor

    def forward(self, values: Tensor) -> Tensor:
        """Return [rows, features] of the same shape; NaN stays NaN."""
        if self._clips:
            values = torch.minimum(torch.maximum(values, self.low), self.high)
        if self._logs:
            values = torch.where(self.log, torch.sign(values) * _log1p(torch.abs(values)), values)
        return values


def _log1p(values: Tensor) -> Tensor:
    """Return ln(1 + values), of no value below 0.

    PyTorch's own is exported as Log(1 + x), which for small values is the rounding of the sum. This way, of
    Kahan's, the rounding cancels out, and the exported graph computes the same.
    """
    above = 1 + values
    rounded_off = above == 1
    excess = torch.where(rounded_off, 1, above - 1)
    return torch.where(rounded_off, values, torch.log(above) * (values / excess))


class _Sample:
    """A uniform sample of some columns' values: those with the smallest of the numbers drawn for the rows."""

    def __init__(self, seed: int, columns: Sequence[int]) -> None:
        self._columns = list(columns)
        self._generator = torch.Generator().manual_seed(seed)
        self._draws: list[Tensor] = []
        self._values: list[Tensor] = []
        self._rows = 0

    def add(self, batch: Tensor) -> None:
        """Add [rows, features]; NaN is no value."""
        # A batch may be a whole split.
        for rows in batch.split(SAMPLED_VALUES):  # type: ignore[no-untyped-call]
            draws = torch.rand(len(rows), dtype=torch.float64, generator=self._generator)
            values = rows[:, self._columns].T
            self._values.append(values)
            self._draws.append(draws.where(~values.isnan(), torch.inf))
            self._rows += len(rows)
            # Sorting out many rows at once takes less time.
            if self._rows >= 2 * SAMPLED_VALUES:
                self._sort_out()

    def quantiles(self) -> Tensor:
        """Return [quartiles, columns]; each column has a value."""
        # Column by column: PyTorch's quantile takes no more than 16 million values.
        quartiles = torch.tensor(QUARTILES, dtype=torch.float64)
        return torch.stack([column.double().nanquantile(quartiles) for column in self._sort_out()], dim=1)

    def _sort_out(self) -> Tensor:
        """Keep no more than the sample, and return it: [columns, values]."""
        draws, values = torch.cat(self._draws, dim=1), torch.cat(self._values, dim=1)
        if self._rows > SAMPLED_VALUES:
            draws, kept = draws.topk(SAMPLED_VALUES, dim=1, largest=False, sorted=False)
            values = values.gather(1, kept)
        self._draws, self._values, self._rows = [draws], [values], values.shape[1]
        return values
