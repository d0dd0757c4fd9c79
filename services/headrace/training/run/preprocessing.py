"""Raw features to the columns that the network sees: fitted on the training split, part of the model.

Missing values are NaN. What is fitted leaves them out, so that one pass suffices: what stands for them does
not change it. Quantiles are those of a sample of each feature's values, drawn with the run's seed, and
exact while the split has no more of them than the sample holds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from headrace.datasets import UNKNOWN_CATEGORY
from headrace.training.run.errors import UnusableDataset
from headrace.training.run.report import PREPROCESS_FILE
from headrace.training.run.resizing import Resizer
from headrace.training.run.scale import Moments
from headrace.training.run.specification import Encoding, Preparation, Resize, Span

# Of a feature; fewer of each where there are many, so that a sample takes at most 200 MiB.
SAMPLED_VALUES: Final = 100_000
SAMPLED_IN_ALL: Final = 1 << 24
MAX_SAMPLED: Final = 1 << 14
MAX_CATEGORIES: Final = 1_000
FLOAT32: Final = torch.finfo(torch.float32)
# What is divided by less is beyond float32.
SMALLEST_SPREAD: Final = 1e-30
QUARTILES: Final = (0.25, 0.5, 0.75)
_NO_TEXTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({})


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FittedFeature(_Frozen):
    """One feature's preparation, in the order in which it is done: a number, or a tensor of several `values`.

    `fill`, `centre` and `spread` have a number for each of the values, or fewer that repeat: one for all, or
    one for each channel. A missing value becomes `fill` where there is one; then values are moved between
    `clip_min` and `clip_max`; then, with `log`, sign(x) ln(1 + |x|); then (x - centre) / spread. One that is
    encoded is looked up in `categories` instead. Of a feature that is text, its place in `texts` is looked
    up, -1 for a text that is not there; `fill` and `categories` are such places.
    """

    feature: str
    values: int = 1
    fill: tuple[float, ...] | None
    indicator: bool
    clip_min: float | None
    clip_max: float | None
    log: bool
    centre: tuple[float, ...]
    spread: tuple[float, ...]
    encode: Encoding
    categories: tuple[int, ...]
    texts: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """How many columns it has, without the indicators'."""
        return len(self.categories) if self.encode == "one_hot" else self.values


class Preprocessing(_Frozen):
    """`preprocess.json`: how raw features, in this order, become what the network sees.

    Images in `resizes` get another size first, and `features` has their new values in the place of the raw
    ones. Its columns: the features that stay numbers, in their order; then for each one-hot feature its
    categories; then each ordinal feature; then the indicators.
    """

    version: Literal[2] = 2
    resizes: tuple[Resize, ...] = ()
    features: tuple[FittedFeature, ...]

    @property
    def width(self) -> int:
        """How many columns the network sees."""
        return sum(entry.width + entry.values * entry.indicator for entry in self.features)

    def write(self, folder: Path) -> None:
        """Write it into a run's folder."""
        (folder / PREPROCESS_FILE).write_text(self.model_dump_json(indent=2))


def fit(
    preparations: Sequence[Preparation],
    batches: Iterable[Tensor],
    seed: int,
    *,
    spans: Sequence[Span] = (),
    resizes: Sequence[Resize] = (),
    texts: Mapping[str, tuple[str, ...]] = _NO_TEXTS,
) -> Preprocessing:
    """Measure [rows, raw values] batches of the training split. Raises UnusableDataset.

    `spans` say what each preparation is for; empty: a value each. `texts` has the categories of features that
    are text, of which the values are places there.
    """
    spans = spans or [Span()] * len(preparations)
    counts = [span.values for span in spans]
    places = list(itertools.pairwise(itertools.accumulate(counts, initial=0)))
    resize = Resizer(resizes, sum(counts))
    sampled = [
        value
        for wish, place in zip(preparations, places, strict=True)
        if wish.missing == "median" or wish.normalise == "robust"
        for value in range(*place)
    ]
    if len(sampled) > MAX_SAMPLED:
        raise UnusableDataset(
            f"medians and quartiles are asked for of {len(sampled):,} values, and {MAX_SAMPLED:,} are the "
            "most; normalise large tensors by standard or min_max, or resize them"
        )
    squeeze = _Squeeze(preparations, counts)
    raw = Moments()
    squeezed = Moments() if squeeze.changes else raw
    sample = _Sample(seed, sampled)
    categories = _Categories(
        {
            first: wish.feature
            for wish, (first, _) in zip(preparations, places, strict=True)
            if wish.encode != "number"
        }
    )
    for received in batches:
        batch = resize(received)
        raw.add(batch)
        if squeeze.changes:
            squeezed.add(squeeze(batch))
        if sampled:
            sample.add(batch)
        categories.add(batch)
    _require_values(preparations, places, raw.count)
    # Of the other features they are not asked for.
    quantiles = torch.zeros(len(QUARTILES), sum(counts), dtype=torch.float64)
    if sampled:
        quantiles[:, sampled] = sample.quantiles()
    low, median, high = quantiles[0], quantiles[1], quantiles[2]
    # All of it keeps the order of values, and so their quantiles.
    low_squeezed, median_squeezed, high_squeezed = (squeeze(row[None])[0] for row in (low, median, high))
    if any(span.apart != span.values for span in spans):
        squeezed = squeezed.pooled(_pools(spans))
    deviation = squeezed.deviation()
    measured: dict[str, tuple[Tensor, Tensor]] = {
        "none": (torch.zeros_like(deviation), torch.ones_like(deviation)),
        "standard": (squeezed.mean, deviation),
        "min_max": (squeezed.smallest, squeezed.largest - squeezed.smallest),
        "robust": (median_squeezed, high_squeezed - low_squeezed),
    }
    fills = {"mean": raw.mean, "median": median}

    def entry(wish: Preparation, span: Span, place: tuple[int, int]) -> FittedFeature:
        first, end = place
        centres, spreads = (values[first : first + span.apart] for values in measured[wish.normalise])
        known = texts.get(wish.feature, ())
        fill: tuple[float, ...] | None = None
        if wish.missing == "constant":
            fill = (_place(wish.text_constant, known) if known else wish.constant,)
        if wish.missing in fills:
            fill = tuple(fills[wish.missing][first:end].tolist())
        return FittedFeature(
            feature=wish.feature,
            values=span.values,
            fill=fill,
            indicator=wish.indicator,
            clip_min=wish.clip_min,
            clip_max=wish.clip_max,
            log=wish.log,
            centre=tuple(centres.tolist()),
            spread=tuple(_spreads(spreads, centres).tolist()),
            encode=wish.encode,
            categories=categories.of(first),
            texts=known,
        )

    return Preprocessing(resizes=tuple(resizes), features=tuple(map(entry, preparations, spans, places)))


def _require_values(
    preparations: Sequence[Preparation], places: Sequence[tuple[int, int]], counts: Tensor
) -> None:
    for wish, (first, end) in zip(preparations, places, strict=True):
        if not counts[first:end].all():
            raise UnusableDataset(
                f"{wish.feature} has no value in any row of the training split; leave it out of the features"
            )


def _place(text: str | None, known: Sequence[str]) -> float:
    return known.index(text) if text in known else UNKNOWN_CATEGORY


def _pools(spans: Sequence[Span]) -> Tensor:
    """Number, for each value, the first of those that are measured together with it."""
    first, pools = 0, []
    for span in spans:
        pools.append(first + torch.arange(span.values) % span.apart)
        first += span.values
    return torch.cat(pools)


def _spreads(measured: Tensor, centres: Tensor) -> Tensor:
    """Return 1, which only moves a feature, where float32 cannot tell its values apart."""
    told_apart = measured > (centres.abs() * FLOAT32.eps).clamp(min=SMALLEST_SPREAD)
    return torch.where(told_apart, measured, 1.0)


class Preprocessor(nn.Module):
    """What `Preprocessing` says, over tensors: [rows, raw values] FP32 to [rows, columns] FP32."""

    def __init__(self, fitted: Preprocessing) -> None:
        super().__init__()
        features = fitted.features
        counts = [entry.values for entry in features]
        places = list(itertools.accumulate(counts, initial=0))
        self.width = fitted.width
        self._resizer = Resizer(fitted.resizes, sum(counts))
        self._encoded = [
            (place, entry) for place, entry in zip(places, features, strict=False) if entry.encode != "number"
        ]
        # One-hot features first: the order of the columns.
        self._encoded.sort(key=lambda pair: pair[1].encode != "one_hot")
        self._fills = any(entry.fill is not None for entry in features)
        self._indicates = any(entry.indicator for entry in features)
        numbers = [entry for entry in features if entry.encode == "number"]
        self._some_numbers = bool(numbers)
        self._all_numbers = len(numbers) == len(features)
        self._squeeze = _Squeeze(numbers, [entry.values for entry in numbers])
        self.register_buffer("numbers", _chosen(counts, [entry.encode == "number" for entry in features]))
        self.register_buffer("indicators", _chosen(counts, [entry.indicator for entry in features]))
        fills = [(math.nan,) if entry.fill is None else entry.fill for entry in features]
        self.register_buffer("fill", _repeated(counts, fills))
        number_counts = [entry.values for entry in numbers]
        self.register_buffer("centre", _repeated(number_counts, [entry.centre for entry in numbers]))
        self.register_buffer("spread", _repeated(number_counts, [entry.spread for entry in numbers]))
        for place, entry in self._encoded:
            known = torch.tensor(entry.categories, dtype=torch.float32)
            self.register_buffer(f"categories_{place}", known)
            self.register_buffer(f"places_{place}", torch.arange(1.0, len(known) + 1))

    numbers: Tensor
    indicators: Tensor
    fill: Tensor
    centre: Tensor
    spread: Tensor

    def forward(self, raw: Tensor) -> Tensor:
        """Prepare raw features; NaN is a missing value."""
        raw = self._resizer(raw)
        filled = torch.where(torch.isnan(raw), self.fill, raw) if self._fills else raw
        columns: list[Tensor] = []
        if self._some_numbers:
            numbers = filled if self._all_numbers else filled.index_select(1, self.numbers)
            columns.append((self._squeeze(numbers) - self.centre) / self.spread)
        for place, entry in self._encoded:
            known: Tensor = getattr(self, f"categories_{place}")
            same = (filled[:, place : place + 1] == known).float()
            if entry.encode == "one_hot":
                columns.append(same)
            else:
                places: Tensor = getattr(self, f"places_{place}")
                columns.append((same * places).sum(dim=1, keepdim=True) - 1)
        if self._indicates:
            columns.append(torch.isnan(raw.index_select(1, self.indicators)).float())
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)


def _repeated(counts: Sequence[int], numbers: Sequence[tuple[float, ...]]) -> Tensor:
    """Return so many values of each feature, of which its numbers are the first and repeat."""
    parts = [
        torch.tensor(some).repeat(count // len(some)) for count, some in zip(counts, numbers, strict=True)
    ]
    return torch.cat(parts) if parts else torch.empty(0)


def _chosen(counts: Sequence[int], wanted: Sequence[bool]) -> Tensor:
    """Return the places of the values of wanted features."""
    return torch.tensor(wanted).repeat_interleave(torch.tensor(counts)).nonzero()[:, 0]


class _Squeeze(nn.Module):
    """Clip, then log, where features ask for it; `counts`: how many values each of them has."""

    def __init__(self, features: Sequence[Preparation | FittedFeature], counts: Sequence[int]) -> None:
        super().__init__()
        top = FLOAT32.max
        low = [-top if entry.clip_min is None else entry.clip_min for entry in features]
        high = [top if entry.clip_max is None else entry.clip_max for entry in features]
        self._clips = any(entry.clip_min is not None or entry.clip_max is not None for entry in features)
        self._logs = any(entry.log for entry in features)
        values = torch.tensor(counts, dtype=torch.int64)
        self.register_buffer("low", torch.tensor(low).repeat_interleave(values))
        self.register_buffer("high", torch.tensor(high).repeat_interleave(values))
        logs = torch.tensor([entry.log for entry in features], dtype=torch.bool)
        self.register_buffer("log", logs.repeat_interleave(values))

    low: Tensor
    high: Tensor
    log: Tensor

    @property
    def changes(self) -> bool:
        """Whether any feature asks for it."""
        return self._clips or self._logs

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


class _Categories:
    """The different values of some columns."""

    def __init__(self, features: dict[int, str]) -> None:
        """`features`: the columns' names, by their places."""
        self._features = features
        self._found = {place: torch.empty(0) for place in features}

    def add(self, batch: Tensor) -> None:
        """Add [rows, values]; NaN is no value. Raises UnusableDataset."""
        for place, feature in self._features.items():
            values = batch[:, place]
            together = torch.cat([self._found[place], values[~values.isnan()]])
            found: Tensor = together.unique()  # type: ignore[no-untyped-call]
            if len(found) > MAX_CATEGORIES:
                raise UnusableDataset(
                    f"{feature} has more than {MAX_CATEGORIES:,} different values in the training split; "
                    "encode features with fewer, or leave it a number"
                )
            self._found[place] = found

    def of(self, place: int) -> tuple[int, ...]:
        """Return a column's, in rising order; of another column none."""
        return tuple(int(value) for value in self._found.get(place, ()))


class _Sample:
    """A uniform sample of some columns' values: those with the smallest of the numbers drawn for the rows."""

    def __init__(self, seed: int, columns: Sequence[int]) -> None:
        self._columns = list(columns)
        self._most = min(SAMPLED_VALUES, SAMPLED_IN_ALL // max(1, len(self._columns)))
        self._generator = torch.Generator().manual_seed(seed)
        self._draws: list[Tensor] = []
        self._values: list[Tensor] = []
        self._rows = 0

    def add(self, batch: Tensor) -> None:
        """Add [rows, features]; NaN is no value."""
        # A batch may be a whole split.
        for rows in batch.split(self._most):  # type: ignore[no-untyped-call]
            draws = torch.rand(len(rows), dtype=torch.float64, generator=self._generator)
            values = rows[:, self._columns].T
            self._values.append(values)
            self._draws.append(draws.where(~values.isnan(), torch.inf))
            self._rows += len(rows)
            # Sorting out many rows at once takes less time.
            if self._rows >= 2 * self._most:
                self._sort_out()

    def quantiles(self) -> Tensor:
        """Return [quartiles, columns]; each column has a value."""
        # Column by column: PyTorch's quantile takes no more than 16 million values.
        quartiles = torch.tensor(QUARTILES, dtype=torch.float64)
        return torch.stack([column.double().nanquantile(quartiles) for column in self._sort_out()], dim=1)

    def _sort_out(self) -> Tensor:
        """Keep no more than the sample, and return it: [columns, values]."""
        draws, values = torch.cat(self._draws, dim=1), torch.cat(self._values, dim=1)
        if self._rows > self._most:
            draws, kept = draws.topk(self._most, dim=1, largest=False, sorted=False)
            values = values.gather(1, kept)
        self._draws, self._values, self._rows = [draws], [values], values.shape[1]
        return values
