"""A real S3 server with a bucket: moto's, or the one that HEADRACE_TEST_S3 gives the address of (MinIO)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from headrace.embedded.parts.process import free_port

BUCKET = "headrace"
DEADLINE = 60.0
ROOT = Path(__file__).parents[2]


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """The address of a server that has the bucket; where one was given, it has it already."""
    given = os.environ.get("HEADRACE_TEST_S3")
    if given:
        yield given
        return
    port, log = free_port(), folder / "s3.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.s3_server", str(port)],
            stdout=output,
            stderr=output,
            cwd=ROOT,
        )
    try:
        _create_bucket(f"http://127.0.0.1:{port}/{BUCKET}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def use_s3(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Let this process, and those that it starts, find the server and its credentials as they usually do."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "headrace-tests"),
        ("AWS_SECRET_ACCESS_KEY", "headrace-tests"),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, os.environ.get(name, value))


def rows_by_the_log(endpoint: str, table: str) -> pa.Table:
    """The rows of the Delta table at an address: what the log names, read with Arrow's own client.

    It shares no code with delta-rs, through which the service reads and writes.
    """
    server = urlsplit(endpoint)
    files = pyarrow.fs.S3FileSystem(
        access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        region=os.environ["AWS_REGION"],
        scheme=server.scheme,
        endpoint_override=server.netloc,
    )
    folder = table.removeprefix("s3://")
    named: set[str] = set()
    log = files.get_file_info(pyarrow.fs.FileSelector(f"{folder}/_delta_log"))
    for commit in sorted(file.path for file in log if file.path.endswith(".json")):
        with files.open_input_stream(commit) as stream:
            actions = [json.loads(line) for line in stream.read().splitlines()]
        named -= {action["remove"]["path"] for action in actions if "remove" in action}
        named |= {action["add"]["path"] for action in actions if "add" in action}
    return pa.concat_tables(
        [pq.read_table(f"{folder}/{unquote(path)}", filesystem=files) for path in sorted(named)]
    )


def _create_bucket(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="PUT")).close()
        except urllib.error.URLError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        else:
            return
