"""Tensors as bytes: raw numbers, or a PNG or a JPEG, of a declared type of numbers and shape."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

Dtype: TypeAlias = Literal["uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]
Format: TypeAlias = Literal["raw", "png", "jpeg"]
Rule: TypeAlias = Literal["size", "finite", "decodes", "shape"]

DTYPES: Final = get_args(Dtype)
FORMATS: Final = get_args(Format)
MAX_BYTES: Final = 64 << 20
"""What a tensor takes at most, decoded."""
# Of an image's pixels: how Pillow calls those of 1, 3 and 4 bytes.
_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}
_IMAGE_DIMENSIONS: Final = (2, 3)


class TensorFault(Exception):  # noqa: N818 - what it is
    """The bytes are no such tensor: which rule they break, and how."""

    def __init__(self, rule: Rule, message: str) -> None:
        super().__init__(message)
        self.rule: Final = rule
        self.message: Final = message


@dataclass(frozen=True, slots=True)
class TensorType:
    """Numbers of a type, in a shape; how they come as bytes.

    `raw`: the numbers one after the other, the last dimension's first, little-endian. Images are uint8, in
    the shape (height, width) where they are grey, else (height, width, channels) with 1, 3 (red, green, blue)
    or 4 (and alpha).
    """

    dtype: Dtype
    shape: tuple[int, ...]
    format: Format = "raw"

    def __str__(self) -> str:
        """Give it as people write it: uint8[8, 8]."""
        image = "" if self.format == "raw" else f"{self.format} "
        return f"{image}{self.dtype}[{', '.join(map(str, self.shape))}]"

    @property
    def values(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def channels(self) -> int:
        """How many numbers each place of an image has."""
        return math.prod(self.shape[2:])

    @property
    def size(self) -> int:
        """How many bytes its numbers take."""
        return self.values * np.dtype(self.dtype).itemsize

    def fault(self) -> str:
        """Return what makes no sense of it; empty: nothing."""
        if not self.shape or min(self.shape) < 1:
            return "name at least one dimension, each of at least 1"
        if self.size > MAX_BYTES:
            return f"takes {self.size} bytes, and {MAX_BYTES} are the most"
        if self.format == "raw":
            return ""
        if self.dtype != "uint8":
            return f"a {self.format} has uint8 numbers, not {self.dtype}"
        channels = self.channels
        if len(self.shape) not in _IMAGE_DIMENSIONS or channels not in _MODES:
            return "an image's shape is [height, width], or [height, width, channels] with 1, 3 or 4 channels"
        return "a jpeg has no alpha channel" if (self.format, channels) == ("jpeg", 4) else ""

    def decode(self, data: bytes) -> NDArray[np.generic]:
        """Return the tensor, which must not be written to. Raises TensorFault."""
        return self._raw(data) if self.format == "raw" else self._image(data)

    def _raw(self, data: bytes) -> NDArray[np.generic]:
        if len(data) != self.size:
            raise TensorFault("size", f"has {len(data)} bytes, and {self} has {self.size}")
        array = np.frombuffer(data, np.dtype(self.dtype).newbyteorder("<")).reshape(self.shape)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise TensorFault("finite", "has a number that is not finite")
        return array

    def _image(self, data: bytes) -> NDArray[np.generic]:
        from PIL import Image

        # What an image says of its size is compared before its pixels are decoded.
        Image.MAX_IMAGE_PIXELS = None
        mode = _MODES[self.channels]
        try:
            with Image.open(io.BytesIO(data), formats=[self.format]) as image:
                found = (image.height, image.width, image.mode)
                if found == (*self.shape[:2], mode):
                    return np.asarray(image).reshape(self.shape)
        except Exception as error:
            # Broken files make Pillow raise whatever they lead to.
            raise TensorFault("decodes", f"is no {self.format} that can be decoded") from error
        height, width, what = found
        wanted = f"{self.shape[0]} x {self.shape[1]} {mode}"
        raise TensorFault("shape", f"is {height} x {width} {what}, and {self} is {wanted}")
