"""Before the model: texts as their writers meant them."""

from __future__ import annotations

from pathlib import Path

import ftfy
import numpy as np


class Clean:
    """Repairs texts whose letters were decoded wrongly on their way here (schÃ¶n), and writes them small."""

    def __init__(self, folder: Path) -> None:
        pass

    def __call__(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Texts come as bytes."""
        texts = [ftfy.fix_text(text.decode(errors="replace")).casefold() for text in arrays["texts"][:, 0]]
        return {"texts": np.array(texts, dtype=np.dtypes.StringDType())}
