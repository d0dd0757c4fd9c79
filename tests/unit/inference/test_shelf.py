"""Folders that are made once, held while they are used, and removed when they are of no use."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.support.triton_code import triton_module

NOBODY = Path("/nowhere")
KEYS = [f"key-{number}" for number in range(6)]


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    module: ModuleType = triton_module("shelf", monkeypatch)
    return module.Shelf(tmp_path / "shelf", spare=2)


def fill(folder: Path, _lock: int) -> None:
    folder.mkdir()
    (folder / "file").write_text("whole")


def test_of_all_who_want_it_at_once_one_makes_it(shelf: Any) -> None:
    made = list[int]()
    barrier = threading.Barrier(8)

    def slowly(folder: Path, lock: int) -> None:
        made.append(1)
        fill(folder, lock)

    def take(_: int) -> str:
        barrier.wait()
        folder, lock = shelf.take("key", NOBODY, slowly)
        text: str = (folder / "file").read_text()
        os.close(lock)
        return text

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(take, range(8))) == ["whole"] * 8
    assert made == [1]


def test_what_was_cut_off_is_made_anew(shelf: Any) -> None:
    def cut_off(folder: Path, lock: int) -> None:
        fill(folder, lock)
        (folder / "more").touch()
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        shelf.take("key", NOBODY, cut_off)
    folder, lock = shelf.take("key", NOBODY, fill)
    assert [path.name for path in folder.iterdir()] == ["file"]
    os.close(lock)


def test_what_is_held_stays_and_of_the_rest_what_was_used_last(shelf: Any, tmp_path: Path) -> None:
    held = {}
    for age, key in enumerate(KEYS):
        folder, held[key] = shelf.take(key, NOBODY, fill)
        os.utime(folder.with_name("filled"), (age, age))
    shelf.tidy()
    assert names(tmp_path) == KEYS
    for key in KEYS[1:]:
        os.close(held[key])
    shelf.tidy()
    # The oldest is held, and two of the others are spare.
    assert names(tmp_path) == [KEYS[0], *KEYS[-2:]]
    os.close(held[KEYS[0]])
    folder, lock = shelf.take(KEYS[1], NOBODY, fill)
    assert (folder / "file").read_text() == "whole"
    os.close(lock)


def test_what_is_needed_stays_while_its_owner_does_although_nobody_holds_it(
    shelf: Any, tmp_path: Path
) -> None:
    owners = [tmp_path / "one", tmp_path / "other"]
    for owner in owners:
        owner.touch()
        os.close(shelf.take("needed", owner, fill)[1])
    for key in KEYS:
        os.close(shelf.take(key, NOBODY, fill)[1])
    for owner in owners:
        shelf.tidy()
        assert "needed" in names(tmp_path)
        owner.unlink()
    assert len(names(tmp_path)) == 3
    for key in KEYS[:2]:
        os.close(shelf.take(key, NOBODY, fill)[1])
    shelf.tidy()
    assert names(tmp_path) == KEYS[:2]


def test_taking_while_others_tidy_answers_what_is_whole(shelf: Any) -> None:
    done = threading.Event()

    def take(number: int) -> None:
        for turn in range(100):
            folder, lock = shelf.take(KEYS[(number + turn) % len(KEYS)], NOBODY, fill)
            assert (folder / "file").read_text() == "whole"
            os.close(lock)

    def tidy() -> None:
        while not done.is_set():
            shelf.tidy()

    take(0)
    tidying = [threading.Thread(target=tidy) for _ in range(2)]
    for thread in tidying:
        thread.start()
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(take, range(4)))
    finally:
        done.set()
        for thread in tidying:
            thread.join()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "shelf").iterdir())
