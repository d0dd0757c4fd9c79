"""Preparations: what is fitted, and that NumPy, PyTorch and the exported model agree on it."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from headrace.training.run import preprocessing as module
from headrace.training.run.errors import UnusableDataset
from headrace.training.run.export import OPSET
from headrace.training.run.preprocessing import FittedFeature, Preprocessing, Preprocessor, fit
from headrace.training.run.specification import Normalisation, Preparation, Span

NAN = float("nan")


def fitted(wish: Preparation, *values: float) -> FittedFeature:
    """One feature, fitted on these values."""
    [entry] = fit([wish], [torch.tensor(values)[:, None]], 0).features
    return entry


def prepared(entry: FittedFeature, *values: float) -> list[list[float]]:
    """What the network sees of a feature's values."""
    rows: list[list[float]] = Preprocessor(Preprocessing(features=(entry,)))(
        torch.tensor(values)[:, None]
    ).tolist()
    return rows


def of(numbers: tuple[float, ...] | None) -> float:
    """What was fitted of a feature with one value."""
    assert numbers is not None
    [number] = numbers
    return number


def reference(fitted: Preprocessing, raw: NDArray[np.float32]) -> NDArray[np.float64]:
    """The document read by somebody else, in NumPy and double precision."""
    numbers, one_hots, ordinals, indicators = [], [], [], []
    for entry, column in zip(fitted.features, raw.astype(np.float64).T, strict=True):
        missing = np.isnan(column)
        if entry.indicator:
            indicators.append(missing.astype(float))
        values = np.where(missing, NAN if entry.fill is None else np.float32(of(entry.fill)), column)
        if entry.encode == "one_hot":
            one_hots += [(values == category).astype(float) for category in entry.categories]
        elif entry.encode == "ordinal":
            places = {category: place for place, category in enumerate(entry.categories)}
            ordinals.append(np.array([places.get(value, -1) for value in values], float))
        else:
            values = np.clip(
                values,
                -np.inf if entry.clip_min is None else entry.clip_min,
                np.inf if entry.clip_max is None else entry.clip_max,
            )
            if entry.log:
                values = np.sign(values) * np.log1p(np.abs(values))
            numbers.append((values - of(entry.centre)) / of(entry.spread))
    return np.column_stack([*numbers, *one_hots, *ordinals, *indicators])


def exported(preprocessor: Preprocessor, raw: Tensor) -> NDArray[np.float32]:
    """What the exported graph answers."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            preprocessor,
            (raw[:1],),
            file,
            input_names=["raw"],
            dynamic_axes={"raw": {0: "rows"}},
            opset_version=OPSET,
            dynamo=False,
        )
    graph = onnx.load_from_string(file.getvalue())
    onnx.checker.check_model(graph)
    [answer] = ReferenceEvaluator(graph).run(None, {"raw": raw.numpy()})
    return np.asarray(answer)


numbers = st.floats(-1000, 1000, width=16)
number_wishes = st.builds(
    Preparation,
    feature=st.just("x"),
    missing=st.sampled_from(["mean", "median", "constant"]),
    constant=numbers,
    indicator=st.booleans(),
    clip_min=st.none() | st.floats(-1000, 0, width=16),
    clip_max=st.none() | st.floats(0, 1000, width=16),
    log=st.booleans(),
    normalise=st.sampled_from(["none", "standard", "min_max", "robust"]),
)
encoded_wishes = st.builds(
    Preparation,
    feature=st.just("x"),
    missing=st.just("constant"),
    constant=st.integers(-3, 3).map(float),
    indicator=st.booleans(),
    encode=st.sampled_from(["one_hot", "ordinal"]),
)


@st.composite
def wishes_and_rows(draw: st.DrawFn) -> tuple[list[Preparation], Tensor]:
    wishes = draw(st.lists(number_wishes | encoded_wishes, min_size=1, max_size=6))
    rows = draw(st.integers(2, 12))
    columns = []
    for wish in wishes:
        values = numbers if wish.encode == "number" else st.integers(-3, 3).map(float)
        column = draw(st.lists(st.just(NAN) | values, min_size=rows, max_size=rows))
        columns.append([draw(values), *column])
    return wishes, torch.tensor(columns, dtype=torch.float32).T.contiguous()


@settings(max_examples=12)
@given(wishes_and_rows(), st.integers(1, 12))
def test_numpy_torch_and_the_exported_model_agree(drawn: tuple[list[Preparation], Tensor], half: int) -> None:
    """Fitted on the first rows, so that the others have values that were not seen."""
    wishes, rows = drawn
    document = fit(wishes, [rows[:half]], 0)
    preprocessor = Preprocessor(document).eval()
    expected = reference(document, rows.numpy())
    found = preprocessor(rows)
    assert found.shape == (len(rows), preprocessor.width)
    # Differences of float32 are as large as the numbers that were subtracted, over the spread.
    scale = max(1.0, *(1000 / of(entry.spread) for entry in document.features))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(exported(preprocessor, rows), found.numpy(), rtol=1e-5, atol=1e-5 * scale)
    assert not found.isnan().any()


@settings(max_examples=40)
@given(wishes_and_rows(), st.integers(1, 5))
def test_batches_make_no_difference(drawn: tuple[list[Preparation], Tensor], size: int) -> None:
    wishes, rows = drawn
    whole, parted = (fit(wishes, batches, 0) for batches in ([rows], rows.split(size)))
    for one, other in zip(whole.features, parted.features, strict=True):
        assert one.categories == other.categories
        for name in ("fill", "centre", "spread"):
            expected, found = getattr(one, name), getattr(other, name)
            assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("wish", "values", "expected"),
    [
        ({"normalise": "none"}, [5, 7], [[5], [7]]),
        ({"normalise": "standard"}, [1, 3], [[-1], [1]]),
        ({"normalise": "min_max"}, [10, 15, 20], [[0], [0.5], [1]]),
        ({"normalise": "robust"}, [0, 1, 2, 3, 1000], [[-1], [-0.5], [0], [0.5], [499]]),
        ({"normalise": "standard"}, [4, 4], [[0], [0]]),
        ({"clip_min": 0, "clip_max": 10}, [-5, 5, 50], [[0], [5], [10]]),
        ({"log": True}, [np.e - 1, 0, 1 - np.e], [[1], [0], [-1]]),
        ({"missing": "mean"}, [1, NAN, 3], [[1], [2], [3]]),
        ({"missing": "median"}, [1, NAN, 2, 9], [[1], [2], [2], [9]]),
        ({"missing": "constant", "constant": -1, "indicator": True}, [4, NAN], [[4, 0], [-1, 1]]),
        ({"missing": "mean", "normalise": "standard"}, [1, NAN, 3], [[-1], [0], [1]]),
        ({"missing": "constant", "constant": 99, "clip_max": 9}, [4, NAN], [[4], [9]]),
        ({"encode": "one_hot"}, [7, -1, 7], [[0, 1], [1, 0], [0, 1]]),
        ({"encode": "ordinal"}, [30, 10, 20], [[2], [0], [1]]),
        ({"encode": "one_hot", "missing": "constant", "constant": 2}, [1, 2, NAN], [[1, 0], [0, 1], [0, 1]]),
    ],
)
def test_a_preparation_does_what_it_says(
    wish: dict[str, object], values: Sequence[float], expected: list[list[float]]
) -> None:
    entry = fitted(Preparation.model_validate({"feature": "x", **wish}), *values)
    np.testing.assert_allclose(prepared(entry, *values), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("normalise", ["standard", "min_max", "robust"])
@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e-4, 1.0, 1e6, 1e38])
def test_a_logarithm_is_exact_at_any_scale(scale: float, normalise: Normalisation) -> None:
    """Divided by the spread of values this small, a rounding of 1 + x would be as large as they are."""
    rows = torch.linspace(-scale, scale, 50)[:, None]
    document = fit([Preparation(feature="x", log=True, normalise=normalise)], [rows], 0)
    preprocessor = Preprocessor(document).eval()
    found = preprocessor(rows).numpy()
    np.testing.assert_allclose(found, reference(document, rows.numpy()), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(exported(preprocessor, rows), found, rtol=1e-5, atol=1e-5)


def test_a_value_that_training_did_not_see_is_no_category() -> None:
    one_hot = fitted(Preparation(feature="x", encode="one_hot"), 1, 2)
    ordinal = fitted(Preparation(feature="x", encode="ordinal"), 1, 2)
    assert prepared(one_hot, 3, NAN) == [[0, 0], [0, 0]]
    assert prepared(ordinal, 3, NAN) == [[-1], [-1]]


def test_a_text_is_looked_up_by_its_place() -> None:
    """Places are what a reader gives: of "a" 0, of "b" 1, of any other text -1, of a missing one NaN."""
    wish = Preparation(feature="x", encode="one_hot", missing="constant", text_constant="b", indicator=True)
    places = torch.tensor([[0.0], [1.0], [-1.0], [NAN]])
    document = fit([wish], [places[:2]], 0, texts={"x": ("a", "b")})
    assert Preprocessor(document)(places).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 1, 1]]
    assert Preprocessing.model_validate_json(document.model_dump_json()) == document
    foreign = wish.model_copy(update={"text_constant": "z", "encode": "ordinal", "indicator": False})
    [entry] = fit([foreign], [places[:2]], 0, texts={"x": ("a", "b")}).features
    assert prepared(entry, 1, NAN) == [[1], [-1]]


def test_columns_have_an_order() -> None:
    """Numbers, categories of one-hot features, ordinals, indicators."""
    wishes = [
        Preparation(feature="grade", encode="ordinal"),
        Preparation(feature="site", encode="one_hot", indicator=True, missing="constant"),
        Preparation(feature="area"),
    ]
    document = fit(wishes, [torch.tensor([[1.0, 4.0, 0.5], [2.0, 6.0, 0.7]])], 0)
    assert Preprocessor(document)(torch.tensor([[2.0, 6.0, 0.5]])).tolist() == [[0.5, 0, 1, 1, 0]]


def test_the_document_can_be_read_back(tmp_path: Path) -> None:
    document = fit([Preparation(feature="x", normalise="robust")], [torch.rand(50, 1)], 0)
    document.write(tmp_path)
    text = (tmp_path / "preprocess.json").read_text()
    assert Preprocessing.model_validate_json(text) == document
    assert json.loads(text)["version"] == 2


def test_quantiles_of_many_values_are_those_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """5,000 of 50,000: the median's standard error is 0.7 % of the range."""
    monkeypatch.setattr(module, "SAMPLED_VALUES", 5_000)
    rows = torch.arange(50_000.0)[:, None]
    wish = Preparation(feature="x", normalise="robust")
    [entry] = fit([wish], rows.split(777), 3).features
    assert of(entry.centre) / 50_000 == pytest.approx(0.5, abs=0.035)
    assert of(entry.spread) / 50_000 == pytest.approx(0.5, abs=0.035)
    assert fit([wish], rows.split(777), 3).features == (entry,)


def test_quantiles_of_few_values_in_many_rows_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLED_VALUES", 10)
    rows = torch.full((5_000, 2), NAN)
    rows[::1_000, 0] = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])
    rows[:, 1] = 7
    wishes = [Preparation(feature=name, missing="median", normalise="robust") for name in "xy"]
    sparse, dense = fit(wishes, rows.split(777), 3).features
    assert (sparse.fill, sparse.centre, sparse.spread) == ((3,), (3,), (2,))
    assert (dense.fill, dense.centre) == ((7,), (7,))


def test_a_sample_of_many_values_has_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 rows of two values: the median's standard error is 1.6 % of the range."""
    monkeypatch.setattr(module, "SAMPLED_IN_ALL", 2_000)
    rows = torch.arange(50_000.0)[:, None].repeat(1, 2)
    wish = Preparation(feature="x", normalise="robust")
    [entry] = fit([wish], rows.split(777), 3, spans=[Span(2, 2)]).features
    assert len(entry.centre) == 2
    for centre in entry.centre:
        assert centre / 50_000 == pytest.approx(0.5, abs=0.08)
        assert centre != 24_999.5


def test_quartiles_of_a_large_image_are_refused() -> None:
    wish = Preparation(feature="image", normalise="robust")
    with pytest.raises(UnusableDataset, match="standard or min_max"):
        fit([wish], [torch.zeros(1, 20_000)], 0, spans=[Span(20_000, 20_000)])


def test_a_tensor_is_prepared_as_its_values_would_be_alone() -> None:
    """Between two numbers, with a value that is missing, and none of its statistics shared."""
    rows = torch.rand(50, 6, generator=torch.Generator().manual_seed(1)) * 9
    rows[3, 1:5] = NAN
    options = {"missing": "mean", "indicator": True, "clip_max": 8.0, "log": True, "normalise": "standard"}
    first = Preparation(feature="a", encode="one_hot")
    last = Preparation(feature="c", normalise="min_max")
    rows[:, 0] = rows[:, 0].round()
    tensor = Preparation.model_validate({"feature": "b", **options})
    together = Preprocessor(fit([first, tensor, last], [rows], 0, spans=[Span(), Span(4, 4), Span()])).eval()
    apart = Preprocessor(fit([first, *[tensor] * 4, last], [rows], 0))
    assert torch.equal(together(rows), apart(rows))
    np.testing.assert_allclose(exported(together, rows), together(rows).numpy(), rtol=1e-5, atol=1e-5)


def test_too_many_categories_are_refused() -> None:
    with pytest.raises(UnusableDataset, match="more than 1,000 different values"):
        fitted(Preparation(feature="x", encode="one_hot"), *map(float, range(1001)))


def test_a_feature_without_any_value_is_refused() -> None:
    with pytest.raises(UnusableDataset, match="x has no value in any row"):
        fitted(Preparation(feature="x", missing="mean"), NAN, NAN)
