"""What the commits of a Delta table say of themselves.

Not by delta-rs' `history`: it counts versions down from the one that the table was read at, and the commits
up from the newest one in the log. Where another writer committed in between, each commit stands under its
neighbour's version.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import pyarrow.fs
from deltalake.fs import DeltaStorageHandler


def read_commits(
    uri: str, storage_options: Mapping[str, str], after: int, up_to: int
) -> Iterator[tuple[int, Mapping[str, object]]]:
    """The versions beyond `after`, and the information that each one's commit carries.

    Raises FileNotFoundError where the log does not hold a version.
    """
    if after >= up_to:
        return
    files = pyarrow.fs.PyFileSystem(DeltaStorageHandler(uri, dict(storage_options)))
    for version in range(after + 1, up_to + 1):
        with files.open_input_stream(f"_delta_log/{version:020}.json") as stream:
            yield version, _commit_information(stream.read())


def _commit_information(entry: bytes) -> Mapping[str, object]:
    for line in entry.splitlines():
        action = json.loads(line)
        if "commitInfo" in action:
            information: Mapping[str, object] = action["commitInfo"]
            return information
    return {}
