"""Write scikit-learn's handwritten digits as a Parquet file of PNG images, for `headrace import`.

Usage: python examples/digits/write_samples.py FILE.parquet
"""

from __future__ import annotations

import io
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits


def main(path: str) -> None:
    """Write each digit with an id, its image and which one it is."""
    digits = load_digits()
    rows = pa.table(
        {
            "digit_id": [f"digit-{number:04}" for number in range(len(digits.target))],
            "image": pa.array(map(_png, digits.images), pa.binary()),
            "digit": pa.array(digits.target, pa.int8()),
        }
    )
    pq.write_table(rows, path)


def _png(pixels: np.typing.NDArray[np.float64]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "png")
    return file.getvalue()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
