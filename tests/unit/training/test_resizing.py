"""Images in another size: as Pillow makes them, in PyTorch and exported."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from tests.unit.training.test_preprocessing import exported

from headrace.tensors import TensorType
from headrace.training.run.preprocessing import Preprocessor, fit
from headrace.training.run.resizing import Resizer
from headrace.training.run.scale import Moments
from headrace.training.run.specification import Preparation, Resize, Span

sizes = st.integers(1, 9)


def of(height: int, width: int, channels: int, to_height: int, to_width: int, first: int = 0) -> Resize:
    return Resize(
        feature="image",
        first=first,
        height=height,
        width=width,
        channels=channels,
        to_height=to_height,
        to_width=to_width,
    )


def by_pillow(image: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """[height, width, channels], each channel as an image of 32-bit numbers."""
    channels = [
        np.asarray(Image.fromarray(channel).resize((width, height), Image.Resampling.BILINEAR))
        for channel in np.moveaxis(image, 2, 0)
    ]
    return np.stack(channels, axis=2)


@settings(max_examples=60)
@given(sizes, sizes, st.integers(1, 4), sizes, sizes, st.integers(0, 2**32 - 1))
def test_pixels_are_those_of_pillow(
    height: int, width: int, channels: int, to_height: int, to_width: int, seed: int
) -> None:
    images = np.random.default_rng(seed).random((3, height, width, channels), np.float32) * 255
    resizer = Resizer([of(height, width, channels, to_height, to_width)], to_height * to_width * channels)
    found = resizer(torch.from_numpy(images.reshape(3, -1))).reshape(3, to_height, to_width, channels)
    expected = np.stack([by_pillow(image, to_height, to_width) for image in images])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-2)


def test_other_values_stay_where_they_are_and_a_missing_image_is_missing() -> None:
    resizer = Resizer([of(2, 2, 1, 1, 1, first=1), of(1, 2, 1, 1, 4, first=6)], 7)
    rows = torch.tensor([[7.0, 1, 2, 3, 6, 8, 0, 4], [7, *[math.nan] * 4, 8, 0, 4]])
    assert resizer(rows)[0].tolist() == [7, 3, 8, 0, 1, 3, 4]
    assert resizer(rows)[1].isnan().tolist() == [False, True, *[False] * 5]


def test_the_exported_model_resizes_as_the_trained_one_does() -> None:
    resizes = [of(6, 5, 3, 2, 3, first=1)]
    wishes = [
        Preparation(feature="area", normalise="robust"),
        Preparation(feature="image", normalise="standard"),
    ]
    spans = [Span(), Span(18, 3)]
    rows = torch.rand(20, 91, generator=torch.Generator().manual_seed(1))
    document = fit(wishes, [rows], 0, resizes=resizes, spans=spans)
    assert [len(set(entry.centre)) for entry in document.features] == [1, 3]
    preprocessor = Preprocessor(document).eval()
    found = preprocessor(rows)
    assert found.shape == (20, 19)
    channels = found[:, 1:].reshape(20, 6, 3)
    assert channels.mean(dim=(0, 1)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert channels.std(dim=(0, 1), correction=0).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    np.testing.assert_allclose(exported(preprocessor, rows), found.numpy(), rtol=1e-5, atol=1e-5)


@settings(max_examples=40)
@given(st.data(), st.integers(1, 6), st.integers(1, 8))
def test_moments_of_a_pool_are_those_of_all_its_values(data: st.DataObject, columns: int, rows: int) -> None:
    number = st.just(math.nan) | st.floats(-100, 100, width=16)
    values = data.draw(st.lists(number, min_size=rows * columns, max_size=rows * columns))
    pools = data.draw(st.lists(st.integers(0, columns - 1), min_size=columns, max_size=columns))
    batch = torch.tensor(values).reshape(rows, columns)
    moments = Moments()
    moments.add(batch)
    pooled = moments.pooled(torch.tensor(pools))
    for column, pool in enumerate(pools):
        together = Moments()
        together.add(batch[:, [index for index, other in enumerate(pools) if other == pool]].reshape(-1, 1))
        for name in ("count", "mean", "squares", "smallest", "largest"):
            found, expected = getattr(pooled, name)[column], getattr(together, name)[0]
            assert float(found) == pytest.approx(float(expected), rel=1e-9, abs=1e-9), name


def test_channels_are_the_last_dimension_or_one() -> None:
    assert TensorType("uint8", (8, 8)).channels == 1
    assert TensorType("uint8", (8, 8, 3)).channels == 3
