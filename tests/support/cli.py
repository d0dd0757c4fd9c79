"""Commands of `headrace`, run against services that answer what a test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from typer.testing import Result

Headrace = Callable[..., Result]
"""Runs a command with these words."""

_STREAMS = ("Watch", "Stream", "Download", "ReadVersion", "ReplayVersion", "Tune")


class Services:
    """One object that answers for every service; what a test does not set is unimplemented."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.answers: dict[str, Callable[[Any], Any]] = {}

    def __getattr__(self, method: str) -> Any:
        if not method[0].isupper():
            raise AttributeError(method)

        async def one(request: Any, _context: Any) -> Any:
            self.requests.append(request)
            return self.answers[method](request)

        async def many(request: Any, _context: Any) -> AsyncIterator[Any]:
            self.requests.append(request)
            for answer in self.answers[method](request):
                yield answer

        return many if method.startswith(_STREAMS) else one
