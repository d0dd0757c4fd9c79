"""Folders that are made once, found by a key, and removed when they have long been of no use."""

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path

_CONTENT = "content"
# Written last: what was cut off while it was made is made anew.
_STAMP = "filled"
# A path in each line, of what needs it.
_OWNERS = "owners"


class Shelf:
    """Folders below one, for all processes of this machine; whoever uses one of them holds a lock on it."""

    def __init__(self, folder, *, spare):
        """`spare`: so many that nobody needs are kept, those that were used last."""
        self._folder = Path(folder)
        self._spare = spare

    def take(self, key, owner, fill):
        """(folder, lock) of a key, made by `fill(folder, lock)` where it is not there: one process does.

        It stays until the lock, a descriptor, is closed here and in every program that was given it, and then
        as long as there is something at the path `owner`. Raises what `fill` raises.
        """
        place = self._folder / key
        while True:
            try:
                place.mkdir(parents=True, exist_ok=True)
                lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            except (FileExistsError, FileNotFoundError):
                # Removed meanwhile.
                continue
            try:
                if self._taken(place, lock, fill):
                    _note(place, owner)
                    return place / _CONTENT, lock
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)

    def tidy(self):
        """Remove what nobody holds or needs, but for the spare ones."""
        free = []
        for place in self._folder.iterdir():
            with suppress(FileNotFoundError):
                lock = os.open(place, os.O_RDONLY)
                free.append((_used(place), place, lock))
        free.sort(reverse=True)
        kept = 0
        for _, place, lock in free:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Another process may have removed it, and made it anew, for itself.
                if _same(place, lock) and not _needed(place):
                    kept += 1
                    if kept > self._spare:
                        _remove(place)
            os.close(lock)

    def _taken(self, place, lock, fill):
        """Whether it is there, and held; else it was made, or has gone, and is to be looked for again."""
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not _same(place, lock):
            return False
        if (place / _STAMP).exists():
            os.utime(place / _STAMP)
            return True
        # Not at one stroke: another process may have made it, or removed it, before this one has the lock.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _same(place, lock) and not (place / _STAMP).exists():
            shutil.rmtree(place / _CONTENT, ignore_errors=True)
            fill(place / _CONTENT, lock)
            (place / _STAMP).touch()
        return False


def _note(place, owner):
    if str(owner) not in _owners(place):
        # One write: others may note themselves at the same time.
        with (place / _OWNERS).open("a", encoding="utf-8") as owners:
            owners.write(f"{owner}\n")


def _needed(place):
    return any(Path(owner).exists() for owner in _owners(place))


def _owners(place):
    try:
        return (place / _OWNERS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []


def _remove(place):
    # First: of what is half removed nobody must think that it is whole.
    (place / _STAMP).unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)


def _same(place, lock):
    """Whether the locked folder is the one that is there."""
    try:
        return os.path.samestat(place.stat(), os.fstat(lock))
    except FileNotFoundError:
        return False


def _used(place):
    """When it was taken last; 0 for one that was never whole."""
    try:
        return (place / _STAMP).stat().st_mtime
    except FileNotFoundError:
        return 0.0
