"""Dataset versions for training: their rows as batches of tensors.

    table = Table.open(uri, version)
    reader = Reader(table, [Numbers(features), Classes(label, values)], batch_rows=1024, shuffle=Shuffle(1))
    for epoch in range(epochs):
        for features, labels in reader:
            ...

Needs PyTorch, pyarrow and deltalake, and Numba where keys are hashed.
"""

from headrace.datasets.encoding import (
    UNKNOWN_CATEGORY,
    Categories,
    Classes,
    Encoding,
    Flat,
    Numbers,
    Tensors,
    rows_at_a_time,
)
from headrace.datasets.plan import Shard, Shuffle
from headrace.datasets.reader import Reader, Selection
from headrace.datasets.table import Part, Table

__all__ = [
    "UNKNOWN_CATEGORY",
    "Categories",
    "Classes",
    "Encoding",
    "Flat",
    "Numbers",
    "Part",
    "Reader",
    "Selection",
    "Shard",
    "Shuffle",
    "Table",
    "Tensors",
    "rows_at_a_time",
]
