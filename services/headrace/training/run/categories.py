"""Which categories text features have: those of the training split, found before any text is encoded."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from headrace.datasets import Selection, Table
from headrace.training.run.errors import UnusableDataset
from headrace.training.run.preprocessing import MAX_CATEGORIES


def find_categories(table: Table, columns: Sequence[str], selection: Selection) -> dict[str, tuple[str, ...]]:
    """Read the different texts of each column in the selected rows, by their code points.

    A missing one, null or empty, is no category. Raises UnusableDataset where there are too many.
    """
    found = {name: pa.array([], pa.string()) for name in columns}
    read = list(dict.fromkeys([*columns, *selection.columns]))
    # Without columns there is nothing to read.
    for part in table.parts if columns else ():
        for batch in table.scan(part, read):
            rows = batch.filter(pa.array(selection.mask(batch)))
            for name in columns:
                texts = rows.column(name).unique().cast(pa.string())
                together = pa.chunked_array([found[name], texts]).unique()
                # Null compares as null, and goes, too.
                found[name] = together.filter(pc.not_equal(together, ""))
                if len(found[name]) > MAX_CATEGORIES:
                    raise UnusableDataset(
                        f"{name} has more than {MAX_CATEGORIES:,} different texts in the training split; "
                        "encode features with fewer, or leave it out"
                    )
    return {name: tuple(sorted(texts.to_pylist())) for name, texts in found.items()}
