from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.rpc.tensors import from_tensor_type, to_tensor_type
from headrace.tensors import DTYPES, FORMATS, Dtype, Format, TensorFault, TensorType


def encoded(pixels: np.typing.NDArray[np.uint8], form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def fault_of(tensor: TensorType, data: bytes) -> TensorFault:
    with pytest.raises(TensorFault) as caught:
        tensor.decode(data)
    return caught.value


@pytest.mark.parametrize("dtype", DTYPES)
def test_raw_numbers_are_little_endian_and_row_by_row(dtype: Dtype) -> None:
    tensor = TensorType(dtype, (2, 3))
    data = np.arange(6).reshape(2, 3).astype(np.dtype(dtype).newbyteorder("<")).tobytes()
    assert len(data) == tensor.size
    decoded = tensor.decode(data)
    assert decoded.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert decoded.dtype == np.dtype(dtype)


def test_raw_bytes_must_be_as_many_as_the_numbers_take() -> None:
    fault = fault_of(TensorType("float32", (4,)), bytes(15))
    assert (fault.rule, fault.message) == ("size", "has 15 bytes, and float32[4] has 16")


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_raw_numbers_must_be_finite(number: float) -> None:
    assert fault_of(TensorType("float32", (2,)), np.array([1, number], "<f4").tobytes()).rule == "finite"


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        ("png", (5, 7)),
        ("png", (5, 7, 1)),
        ("png", (5, 7, 3)),
        ("png", (5, 7, 4)),
        ("jpeg", (5, 7)),
        ("jpeg", (5, 7, 3)),
    ],
)
def test_an_image_becomes_its_pixels(form: Format, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    decoded = TensorType("uint8", shape, form).decode(encoded(pixels.squeeze(), form))
    assert (decoded.shape, decoded.dtype) == (shape, np.uint8)
    if form == "png":
        np.testing.assert_array_equal(decoded, pixels)


def test_an_image_of_another_shape_or_kind_is_none() -> None:
    pixels = np.zeros((5, 7, 3), np.uint8)
    tensor = TensorType("uint8", (5, 7, 3), "png")
    other = fault_of(TensorType("uint8", (7, 5, 3), "png"), encoded(pixels, "png"))
    assert other.rule == "shape"
    assert other.message == "is 5 x 7 RGB, and png uint8[7, 5, 3] is 7 x 5 RGB"
    assert fault_of(TensorType("uint8", (5, 7), "png"), encoded(pixels, "png")).rule == "shape"
    assert fault_of(tensor, encoded(pixels, "jpeg")).rule == "decodes"
    assert fault_of(tensor, encoded(pixels, "png")[:45]).rule == "decodes"


def test_what_an_image_says_of_its_size_is_compared_before_it_is_decoded() -> None:
    huge = bytearray(encoded(np.zeros((1, 1), np.uint8), "png"))
    # The header's width and height: 2^31 - 1 pixels each way; its checksum is wrong then, which comes first.
    huge[16:24] = b"\x7f\xff\xff\xff" * 2
    assert fault_of(TensorType("uint8", (1, 1), "png"), bytes(huge)).rule == "decodes"
    large = encoded(np.zeros((3000, 3000), np.uint8), "png")
    assert fault_of(TensorType("uint8", (1, 1), "png"), large).rule == "shape"


@given(st.binary(max_size=200), st.sampled_from(FORMATS), st.booleans())
def test_any_bytes_are_a_tensor_or_a_fault(data: bytes, form: Format, headed: bool) -> None:
    tensor = TensorType("uint8", (2, 2), form)
    if headed and form != "raw":
        image = encoded(np.zeros((2, 2), np.uint8), form)
        data = image[: len(data) % len(image)] + data
    try:
        assert tensor.decode(data).shape == (2, 2)
    except TensorFault as fault:
        assert fault.rule in ("size", "decodes", "shape")


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (TensorType("uint8", ()), "at least one dimension"),
        (TensorType("uint8", (2, 0)), "each of at least 1"),
        (TensorType("float64", (1 << 12, 1 << 12)), "are the most"),
        (TensorType("float32", (2, 2), "png"), "a png has uint8 numbers"),
        (TensorType("uint8", (2,), "png"), "an image's shape is"),
        (TensorType("uint8", (2, 2, 2), "jpeg"), "with 1, 3 or 4 channels"),
        (TensorType("uint8", (2, 2, 4), "jpeg"), "no alpha channel"),
    ],
)
def test_a_type_that_makes_no_sense_says_why(tensor: TensorType, why: str) -> None:
    assert why in tensor.fault()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMATS)
def test_a_type_survives_its_message(dtype: Dtype, form: Format) -> None:
    tensor = TensorType(dtype, (8, 8), form)
    assert from_tensor_type(to_tensor_type(tensor)) == tensor


def test_a_type_is_raw_unless_it_says_otherwise() -> None:
    message = api.TensorType(dtype=api.TENSOR_DTYPE_UINT8, shape=[2])
    assert from_tensor_type(message) == TensorType("uint8", (2,))
    assert TensorType("uint8", (2,)).fault() == ""
