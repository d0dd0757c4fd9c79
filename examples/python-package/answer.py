"""Behind the model: what the signature promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np


class Answer:
    """Makes scores of sums."""

    def __init__(self, folder: Path) -> None:
        pass

    def __call__(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One row for each text, in the order of the classes."""
        praise = 1 / (1 + np.exp(-arrays["sums"]))
        return {"scores": np.stack([1 - praise, praise], axis=1)}
