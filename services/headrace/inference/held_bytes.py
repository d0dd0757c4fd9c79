"""How many bytes are held in memory, and waiting until there are fewer."""

from __future__ import annotations

import asyncio


class HeldBytes:
    """Counts bytes that somebody holds. Who is about to take more, and cannot know how many, waits for room.

    There is room while fewer than `most` are held, or none: so what is larger can be taken, too, alone.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self._room = asyncio.Event()
        self._room.set()

    @property
    def has_room(self) -> bool:
        """Whether more may be taken."""
        return self._room.is_set()

    async def room(self) -> None:
        """Wait until more may be taken."""
        # Others may have taken it before this one goes on.
        while not self.has_room:
            await self._room.wait()

    def take(self, size: int) -> None:
        """Hold so many more."""
        self.held += size
        self._tell()

    def give(self, size: int) -> None:
        """Hold so many fewer."""
        self.held -= size
        self._tell()

    def _tell(self) -> None:
        if self.held < self.most or not self.held:
            self._room.set()
        else:
            self._room.clear()
