"""SQL in files: `-- name: insert_job` begins a query, the next name or the file's end closes it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import resources

_NAME = re.compile(r"^-- name: ([a-z][a-z0-9_]*)\s*$", re.MULTILINE)


class Queries(Mapping[str, str]):
    """SQL texts by name. An unknown name is a KeyError."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = dict(texts)

    def __getitem__(self, name: str) -> str:
        return self._texts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)


def load_queries(package: str, file: str = "queries.sql") -> Queries:
    """Read a package's query file.

    Raises ValueError where a name stands twice or SQL stands before the first name.
    """
    return parse_queries(resources.files(package).joinpath(file).read_text())


def parse_queries(text: str) -> Queries:
    """Split a query file's text. Raises ValueError as `load_queries` says."""
    head, *parts = _NAME.split(text)
    if any(line.strip() and not line.startswith("--") for line in head.splitlines()):
        raise ValueError("SQL stands before the first '-- name:' line")
    names, bodies = parts[::2], parts[1::2]
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise ValueError(f"queries named twice: {', '.join(sorted(doubled))}")
    return Queries({name: body.strip() for name, body in zip(names, bodies, strict=True)})
