"""What the commits of a Delta table say of themselves.

Not by delta-rs' `history`: it counts versions down from the one that the table was read at, and the commits
up from the newest one in the log. Where another writer committed in between, each commit stands under its
neighbour's version.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from headrace.errors import NotFound
from headrace.objects.store import table_store

Action = Mapping[str, Mapping[str, object]]
"""One line of a commit: the action's kind, and what it says."""


def read_commits(uri: str, after: int, up_to: int) -> Iterator[tuple[int, Mapping[str, object]]]:
    """The versions beyond `after`, and the information that each one's commit carries.

    Raises FileNotFoundError where the log does not hold a version.
    """
    for version, actions in read_actions(uri, after, up_to):
        yield version, commit_information(actions)


def read_actions(uri: str, after: int, up_to: int) -> Iterator[tuple[int, Sequence[Action]]]:
    """The versions beyond `after`, and what each one's commit did. Raises FileNotFoundError as above."""
    if after >= up_to:
        return
    store = table_store(uri)
    for version in range(after + 1, up_to + 1):
        try:
            commit = store.read_bytes(f"_delta_log/{version:020}.json")
        except NotFound as error:
            raise FileNotFoundError(str(error)) from error
        yield version, [json.loads(line) for line in commit.splitlines()]


def commit_information(actions: Sequence[Action]) -> Mapping[str, object]:
    """What the commit says of itself; empty where it says nothing."""
    return next((action["commitInfo"] for action in actions if "commitInfo" in action), {})
