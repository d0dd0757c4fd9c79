"""What a service says about itself: alive, ready, or draining."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ComponentHealth:
    """Whether one component of a service can do its work, and if not, why."""

    ready: bool
    message: str = ""


class Health:
    """Readiness of a service: every component is ready, and it is not draining.

    A service is not ready before its first component says so.
    """

    def __init__(self) -> None:
        self._components: dict[str, ComponentHealth] = {}
        self._draining = False
        self._listeners: list[Callable[[bool], None]] = []

    @property
    def ready(self) -> bool:
        """Whether the service takes work now."""
        return (
            not self._draining
            and bool(self._components)
            and all(component.ready for component in self._components.values())
        )

    @property
    def draining(self) -> bool:
        """Whether the service is on its way out."""
        return self._draining

    @property
    def components(self) -> dict[str, ComponentHealth]:
        """A copy of each component's state, by name."""
        return dict(self._components)

    def set_ready(self, component: str, ready: bool, message: str = "") -> None:
        """Record a component's state. `message` says why it is not ready, for people."""
        before = self.ready
        self._components[component] = ComponentHealth(ready, message)
        self._notify(before)

    def drain(self) -> None:
        """Take the service out of readiness for good."""
        before = self.ready
        self._draining = True
        self._notify(before)

    def listen(self, listener: Callable[[bool], None]) -> Callable[[], None]:
        """Call `listener` with the new readiness at each change of it. Returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _notify(self, before: bool) -> None:
        now = self.ready
        if now != before:
            for listener in tuple(self._listeners):
                listener(now)
