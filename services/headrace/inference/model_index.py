"""The models that may be asked, whatever server has them: the protocol's repository index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from headrace.inference.use_cases.ports import Route

READY: Final = "READY"
UNAVAILABLE: Final = "UNAVAILABLE"
LOADED_WHEN_ASKED: Final = "loaded when it is asked"


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A version, in the protocol's words."""

    name: str
    version: str
    state: str
    reason: str = ""

    def document(self) -> dict[str, str]:
        """As REST has it."""
        reason = {"reason": self.reason} if self.reason else {}
        return {"name": self.name, "version": self.version, "state": self.state, **reason}


def index_entries(routes: Mapping[str, Route], *, ready: bool) -> Iterator[IndexEntry]:
    """Versions with traffic, by name and number; with `ready` without those that are loaded nowhere."""
    for name, route in sorted(routes.items()):
        cold = route.scale.replicas == 0
        if cold and ready:
            continue
        state, reason = (UNAVAILABLE, LOADED_WHEN_ASKED) if cold else (READY, "")
        for version in sorted(route.weights):
            yield IndexEntry(name, str(version), state, reason)
