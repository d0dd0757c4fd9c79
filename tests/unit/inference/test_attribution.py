"""The laws that shares of an answer obey, for models whose shares are known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.inference.domain.attribution import (
    TOLERANCE,
    Answer,
    Attributions,
    Comparison,
    Gradient,
    NoGradients,
    Numbers,
    OutOfTime,
    Texts,
    TooFewEvaluations,
    integrated_differences,
    integrated_gradients,
    shapley_sampling,
)

Method = Callable[[Comparison, Answer], Attributions]
values = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6)


def never() -> bool:
    return False


def sampled(row: Comparison, answer: Answer, evaluations: int = 20_000) -> Attributions:
    random = np.random.default_rng(0)
    return shapley_sampling(row, answer, evaluations=evaluations, late=never, random=random)


def integrated(row: Comparison, answer: Answer, evaluations: int = 20_000) -> Attributions:
    return integrated_differences(row, answer, evaluations=evaluations, late=never)


def by_gradients(row: Comparison, answer: Answer, evaluations: int = 20_000) -> Attributions:
    return integrated_gradients(row, answer, gradient_of(row, answer), evaluations=evaluations, late=never)


def gradient_of(row: Comparison, answer: Answer) -> Gradient:
    """Its derivatives, by differences that are small for the functions here."""

    def gradient(numbers: Numbers) -> Numbers:
        steps = 1e-3 * np.eye(numbers.shape[1])
        texts = np.broadcast_to(row.texts, (len(numbers), len(row.texts)))
        columns = [(answer(numbers + step, texts) - answer(numbers - step, texts)) / 2e-3 for step in steps]
        return np.stack(columns, axis=1)

    return gradient


every = pytest.mark.parametrize("method", [sampled, integrated, by_gradients])


def compared(
    numbers: Sequence[float],
    baseline: Sequence[float] | None = None,
    *,
    texts: Sequence[str] = (),
    of_number: Sequence[int] | None = None,
) -> Comparison:
    """A row against zeros and empty texts, each column a feature where nothing else is said."""
    places = np.array(range(len(numbers)) if of_number is None else of_number, np.int32)
    of_text = np.arange(len(texts), dtype=np.int32) + len(set(places.tolist()))
    return Comparison(
        numbers=np.array(numbers, float),
        texts=np.array(texts, object),
        baseline_numbers=np.array([0.0] * len(numbers) if baseline is None else baseline, float),
        baseline_texts=np.array([""] * len(texts), object),
        of_number=places,
        of_text=of_text,
        features=len(set(places.tolist())) + len(texts),
    )


def smooth(numbers: Numbers, texts: Texts) -> Numbers:
    """A small network with interactions."""
    weights = np.random.default_rng(1).normal(size=(numbers.shape[1], 3))
    return np.asarray(1 / (1 + np.exp(-np.tanh(numbers @ weights).sum(axis=1))))


def exact_shapley(row: Comparison, answer: Answer) -> list[float]:
    """By the definition: the mean over every order."""
    count = row.features
    totals = np.zeros(count)
    for order in itertools.permutations(range(count)):
        point = row.baseline_numbers.copy()
        for feature in order:
            before = answer(point[None], row.texts[None])[0]
            point[row.of_number == feature] = row.numbers[row.of_number == feature]
            totals[feature] += answer(point[None], row.texts[None])[0] - before
    return list(totals / math.factorial(count))


@every
@settings(max_examples=30)
@given(weights=values, numbers=values, baseline=values)
def test_of_a_linear_model_each_feature_has_its_weight_times_its_distance(
    method: Method, weights: list[float], numbers: list[float], baseline: list[float]
) -> None:
    count = min(map(len, (weights, numbers, baseline)))
    row = compared(numbers[:count], baseline[:count])
    own = np.array(weights[:count])
    found = method(row, lambda rows, _: rows @ own)
    assert found.amounts == pytest.approx(own * (row.numbers - row.baseline_numbers), abs=1e-6)
    assert found.errors == pytest.approx(np.zeros(count), abs=1e-6)
    assert found.gap == pytest.approx(0, abs=1e-6)
    assert found.stop == "CONVERGED"


@every
def test_amounts_add_up_to_the_distance_of_the_answers(method: Method) -> None:
    row = compared([1.0, -2.0, 0.5, 3.0], [0.2, 0.1, -0.3, 0.4])
    found = method(row, smooth)
    assert found.stop == "CONVERGED"
    assert found.answer == pytest.approx(smooth(row.numbers[None], row.texts[None])[0])
    assert found.amounts.sum() == pytest.approx(
        found.answer - found.baseline_answer, abs=TOLERANCE * np.abs(found.amounts).sum()
    )
    # With a sampled order every step is counted once, so that the sum is exact.
    assert method is not sampled or abs(found.gap) < 1e-12


@every
def test_what_the_model_does_not_see_and_what_has_the_baselines_value_has_nothing(method: Method) -> None:
    row = compared([1.0, 7.0, 2.0, 5.0], [0.0, 0.0, 0.0, 5.0])
    found = method(row, lambda rows, _: rows[:, 0] * rows[:, 2] * rows[:, 3])
    assert found.amounts[1] == pytest.approx(0, abs=1e-12)
    assert found.amounts[3] == 0
    assert found.errors[3] == 0
    assert found.amounts.sum() == pytest.approx(10)


@every
def test_features_that_the_model_cannot_tell_apart_have_the_same(method: Method) -> None:
    row = compared([2.0, 2.0, 1.0])
    found = method(row, lambda rows, _: np.tanh(rows[:, 0] * rows[:, 1] + rows[:, 2]))
    apart = abs(found.amounts[0] - found.amounts[1])
    assert apart <= 3 * found.errors[:2].sum() + 1e-9


@every
def test_columns_of_one_feature_have_one_amount(method: Method) -> None:
    row = compared([1.0, 2.0, 3.0], of_number=[0, 0, 1])
    found = method(row, lambda rows, _: rows @ np.array([1.0, 10.0, 100.0]))
    assert found.amounts == pytest.approx([21, 300])


def test_of_two_features_shapley_values_are_exact_at_once() -> None:
    row = compared([3.0, 2.0])
    found = sampled(row, lambda rows, _: rows[:, 0] * rows[:, 1])
    assert found.amounts.tolist() == [3, 3]
    assert found.errors.tolist() == [0, 0]
    assert (found.evaluations, found.samples, found.stop) == (4, 2, "CONVERGED")


def test_sampled_values_are_within_their_errors_of_the_exact_ones() -> None:
    row = compared([1.0, -2.0, 0.5, 3.0, -1.0])
    found = sampled(row, smooth)
    assert found.stop == "CONVERGED"
    assert found.errors.max() <= TOLERANCE * np.abs(found.amounts).sum()
    assert np.abs(found.amounts - exact_shapley(row, smooth)).max() <= 4 * found.errors.max()


def test_the_same_row_has_the_same_explanation() -> None:
    row = compared([1.0, -2.0, 0.5, 3.0, -1.0])
    assert sampled(row, smooth).amounts.tolist() == sampled(row, smooth).amounts.tolist()


def test_texts_and_missing_numbers_are_explained_by_sampling() -> None:
    def answer(numbers: Numbers, texts: Texts) -> Numbers:
        return np.where(np.isnan(numbers[:, 0]), 5.0, numbers[:, 0]) + 2.0 * (texts[:, 0] == "red")

    row = compared([math.nan], texts=["red"])
    assert not row.has_line()
    assert sampled(row, answer).amounts.tolist() == [5, 2]
    # A text that stays as it is is in nobody's way.
    assert compared([1.0], texts=[""]).has_line()


@pytest.mark.parametrize("method", [integrated, by_gradients])
def test_steps_follow_a_bend_until_the_amounts_stay(method: Method) -> None:
    row = compared([4.0, -1.0])
    found = method(row, lambda rows, _: np.maximum(rows.sum(axis=1), 1.0))
    # The line leaves the flat part after a third of the way; from there both have their share.
    assert found.amounts == pytest.approx([8 / 3, -2 / 3], abs=0.05)
    assert found.stop == "CONVERGED"
    assert abs(found.gap) <= TOLERANCE * np.abs(found.amounts).sum()


@every
def test_no_more_is_asked_than_allowed(method: Callable[..., Attributions]) -> None:
    row = compared([1.0, -2.0, 0.5, 3.0, -1.0, 2.0])
    asked = 0

    def noisy(numbers: Numbers, texts: Texts) -> Numbers:
        nonlocal asked
        asked += len(numbers)
        # It jumps everywhere: no number of samples is enough.
        return np.floor(1e6 * np.abs(np.sin(1e4 * numbers.prod(axis=1)))) % 97

    found = method(row, noisy, 1000)
    assert found.stop == "EVALUATIONS"
    assert found.evaluations <= 1000
    # Who asks for gradients counts each as more than the answers that it takes here.
    assert method is by_gradients or found.evaluations == asked
    assert np.isfinite(found.errors).all()


@every
def test_too_small_an_allowance_is_told_how_much_it_takes(method: Callable[..., Attributions]) -> None:
    row = compared([1.0, -2.0, 0.5])
    with pytest.raises(TooFewEvaluations) as caught:
        method(row, smooth, 4)
    assert method(row, smooth, caught.value.needed).evaluations <= caught.value.needed


@pytest.mark.parametrize("looks", range(12))
def test_what_is_found_in_time_is_answered_and_less_than_two_samples_is_nothing(looks: int) -> None:
    row = compared([1.0, -2.0, 0.5, 3.0, -1.0])
    calls = itertools.count()

    def late() -> bool:
        return next(calls) >= looks

    def rough(numbers: Numbers, texts: Texts) -> Numbers:
        return np.abs(np.sin(1e4 * numbers.prod(axis=1)))

    random = np.random.default_rng(0)
    try:
        found = shapley_sampling(row, rough, evaluations=10_000_000, late=late, random=random)
    except OutOfTime:
        assert looks < 2
    else:
        assert found.stop in ("DEADLINE", "CONVERGED")
        assert found.samples >= 4


def test_a_line_is_answered_as_far_as_it_was_refined() -> None:
    row = compared([1.0, -2.0])

    def wave(numbers: Numbers, texts: Texts) -> Numbers:
        return np.sin(300 * numbers.prod(axis=1) + 0.3)

    calls = itertools.count()
    found = integrated_differences(row, wave, evaluations=10_000_000, late=lambda: next(calls) > 3)
    assert found.stop == "DEADLINE"
    with pytest.raises(OutOfTime):
        integrated_differences(row, wave, evaluations=10_000, late=lambda: True)


def test_gradients_cost_the_same_for_any_number_of_features() -> None:
    few, many = (compared(np.linspace(0.1, 1.0, count).tolist()) for count in (2, 300))

    def ask(row: Comparison) -> Attributions:
        # A quadratic answer: the midpoint rule is exact at any number of steps.
        return integrated_gradients(
            row, lambda rows, _: (rows**2).sum(axis=1), lambda rows: 2 * rows, evaluations=74, late=never
        )

    # The ends, and 8 and 16 steps of three each.
    assert [ask(row).evaluations for row in (few, many)] == [74, 74]
    assert ask(many).amounts == pytest.approx(many.numbers**2)
    with pytest.raises(TooFewEvaluations):
        integrated(many, lambda rows, _: (rows**2).sum(axis=1), 10_000)


def nothing(numbers: Numbers) -> Numbers:
    raise NoGradients


def cut_off(numbers: Numbers) -> Numbers:
    """Those of `smooth` without half of their parts."""
    return gradient_of(ROW, smooth)(numbers) * np.array([1.0, 0.0, 1.0, 0.0])


ROW = compared([1.0, -2.0, 0.5, 3.0], [0.2, 0.1, -0.3, 0.4])


@pytest.mark.parametrize("gradient", [nothing, np.zeros_like, cut_off, lambda rows: rows * np.nan])
def test_gradients_that_are_not_the_answers_are_not_believed(gradient: Gradient) -> None:
    found = integrated_gradients(ROW, smooth, gradient, evaluations=20_000, late=never)
    assert found.stop == "CONVERGED"
    # The same steps of differences as without gradients.
    assert found.amounts.tolist() == integrated(ROW, smooth).amounts.tolist()
    # What it took to find that out counts, too, and with less there is no answer.
    with pytest.raises(TooFewEvaluations) as caught:
        integrated_gradients(ROW, smooth, gradient, evaluations=100, late=never)
    assert 100 < caught.value.needed <= found.evaluations


def test_zeros_that_do_not_add_up_are_no_answer_when_time_is_up() -> None:
    calls = itertools.count()
    with pytest.raises(OutOfTime):
        integrated_gradients(ROW, smooth, np.zeros_like, evaluations=20_000, late=lambda: next(calls) > 3)


@every
def test_a_row_like_the_baseline_has_nothing_to_explain(method: Method) -> None:
    found = method(compared([1.0, math.nan], [1.0, math.nan]), lambda rows, _: rows[:, 0])
    assert found.amounts.tolist() == [0, 0]
    assert (found.gap, found.evaluations, found.stop) == (0, 2, "CONVERGED")
