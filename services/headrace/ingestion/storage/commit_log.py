"""What the commits of a Delta table say of themselves.

Not by delta-rs' `history`: it counts versions down from the one that the table was read at, and the commits
up from the newest one in the log. Where another writer committed in between, each commit stands under its
neighbour's version.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

import pyarrow.fs
from deltalake.fs import DeltaStorageHandler

Action = Mapping[str, Mapping[str, object]]
"""One line of a commit: the action's kind, and what it says."""


def read_commits(
    uri: str, storage_options: Mapping[str, str], after: int, up_to: int
) -> Iterator[tuple[int, Mapping[str, object]]]:
    """The versions beyond `after`, and the information that each one's commit carries.

    Raises FileNotFoundError where the log does not hold a version.
    """
    for version, actions in read_actions(uri, storage_options, after, up_to):
        yield version, commit_information(actions)


def read_actions(
    uri: str, storage_options: Mapping[str, str], after: int, up_to: int
) -> Iterator[tuple[int, Sequence[Action]]]:
    """The versions beyond `after`, and what each one's commit did. Raises FileNotFoundError as above."""
    if after >= up_to:
        return
    files = pyarrow.fs.PyFileSystem(DeltaStorageHandler(uri, dict(storage_options)))
    for version in range(after + 1, up_to + 1):
        with files.open_input_stream(f"_delta_log/{version:020}.json") as stream:
            yield version, [json.loads(line) for line in stream.read().splitlines()]


def commit_information(actions: Sequence[Action]) -> Mapping[str, object]:
    """What the commit says of itself; empty where it says nothing."""
    return next((action["commitInfo"] for action in actions if "commitInfo" in action), {})
