"""Which features an explanation has: numbers, texts, and patches of tensors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from headrace.inference.domain.features import read_features


def test_numbers_and_texts_are_features_of_their_own() -> None:
    found = read_features(["age", "height"], ["colour"], 8)
    assert found.names == ("age", "height", "colour")
    assert found.of_number.tolist() == [0, 1]
    assert found.of_text.tolist() == [2]
    assert found.scalars == {"age", "height", "colour"}


@pytest.mark.parametrize("whole", [True, False])
def test_an_image_is_cut_by_height_and_width_and_never_by_colour(whole: bool) -> None:
    places = itertools.product(range(4), range(6), range(3))
    names = [f"photo[{','.join(map(str, place))}]" for place in places]
    found = read_features(["age", *(["photo[0:4,0:6,0:3]"] if whole else names), "height"], [], 2)
    assert found.names == (
        "age",
        "photo[0:2,0:3]",
        "photo[0:2,3:6]",
        "photo[2:4,0:3]",
        "photo[2:4,3:6]",
        "height",
    )
    image = found.of_number[1:-1].reshape(4, 6, 3)
    assert (image[:2, :3] == 1).all()
    assert (image[:2, 3:] == 2).all()
    assert (image[2:, :3] == 3).all()
    assert (image[2:, 3:] == 4).all()
    assert found.of_number[[0, -1]].tolist() == [0, 5]
    assert found.scalars == {"age", "height"}


def test_a_tensor_with_fewer_values_than_parts_is_cut_into_its_values() -> None:
    found = read_features(["wave[0]", "wave[1]", "wave[2]", "wave[3]", "wave[4]"], [], 2)
    assert found.names == ("wave[0]", "wave[1]", "wave[2]", "wave[3:5]")
    assert found.of_number.tolist() == [0, 1, 2, 3, 3]


@pytest.mark.parametrize(("height", "width", "patches"), [(1, 1, 8), (7, 224, 8), (5, 3, 64)])
def test_every_value_has_one_part_and_no_part_is_empty(height: int, width: int, patches: int) -> None:
    found = read_features([f"x[0:{height},0:{width}]"], [], patches)
    assert np.unique(found.of_number).tolist() == list(range(len(found.names)))
    assert len(found.names) == min(height, patches) * min(width, patches)
