"""Both stores behave alike: a local folder, and S3 as moto's server speaks it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import deltalake
import obstore
import pyarrow as pa
import pytest
from tests.support.s3 import BUCKET, s3_server, use_s3

from headrace.client.data_files import find_files
from headrace.embedded.parts import free_port
from headrace.errors import Aborted, InvalidArgument, NotFound, Unavailable
from headrace.objects import ObjectStore
from headrace.objects.store import delta_storage_options


@pytest.fixture(scope="module")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


@pytest.fixture(params=["file", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "file":
        return (tmp_path / "a store" / "of mine").as_uri()
    use_s3(monkeypatch, request.getfixturevalue("s3_endpoint"))
    return f"s3://{BUCKET}/tests/{uuid.uuid4()}"


@pytest.fixture
def store(uri: str) -> ObjectStore:
    return ObjectStore.from_uri(uri)


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_an_object_is_read_as_it_was_written_and_replaced_whole(store: ObjectStore) -> None:
    assert not await store.exists("a/b.bin")
    for data in (b"first", b"", b"\x00\xff" * 100_000):
        await store.put("a/b.bin", data)
        assert await store.get("a/b.bin") == data
        assert store.read_bytes("a/b.bin") == data
    assert await store.exists("a/b.bin")
    store.write_bytes("a/b.bin", b"without a loop")
    assert await store.get("a/b.bin") == b"without a loop"


async def test_an_object_is_measured_and_read_in_parts(store: ObjectStore) -> None:
    await store.put("a/b", b"0123456789")
    assert await store.size("a/b") == 10
    assert [await store.get_part("a/b", start, start + 4) for start in (0, 4, 8)] == [b"0123", b"4567", b"89"]
    # There is no object of that name, and in a folder there can be none of the others.
    nowhere = ["a/c", "a", "a/b/c", f"a/{'x' * 255}"]
    if store.root.startswith("file:"):
        # Longer names are for the store to refuse; MinIO does.
        nowhere.append(f"a/{'x' * 300}")
    for path in nowhere:
        with pytest.raises(NotFound):
            await store.size(path)
        with pytest.raises(NotFound):
            await store.get_part(path, 0, 1)
        await store.delete(path)
    assert await store.exists("a/b")


async def test_objects_of_a_folder_are_listed_by_age(store: ObjectStore) -> None:
    for path in ("a/b", "a/c/d", "other"):
        await store.put(path, b"x")

    async def older(before: datetime) -> list[str]:
        return sorted([path async for path in store.older("a", before)])

    assert await older(datetime.now(UTC) + timedelta(minutes=1)) == ["a/b", "a/c/d"]
    assert await older(datetime.now(UTC) - timedelta(minutes=1)) == []


async def test_large_objects_are_streamed_both_ways(store: ObjectStore) -> None:
    parts = [random.Random(number).randbytes(1_000_003) for number in range(13)]
    await store.put("large", chunks(*parts))
    received = hashlib.sha256()
    sizes = []
    async for chunk in store.stream("large"):
        received.update(chunk)
        sizes.append(len(chunk))
    assert received.hexdigest() == hashlib.sha256(b"".join(parts)).hexdigest()
    assert len(sizes) > 1


async def test_a_stream_that_fails_leaves_what_was_there(store: ObjectStore) -> None:
    async def fails() -> AsyncIterator[bytes]:
        yield b"x" * 1_000_000
        raise RuntimeError("the upload broke off")

    await store.put("a", b"old")
    with pytest.raises(Exception, match="the upload broke off"):
        await store.put("a", fails())
    with pytest.raises(Exception, match="the upload broke off"):
        await store.put("b", fails())
    assert await store.get("a") == b"old"
    assert await store.list("") == ["a"]


async def test_objects_are_listed_by_folder(store: ObjectStore) -> None:
    for path in ("models/m/2/b", "models/m/10/a", "models/m/2/a", "models/mm/1/a", "other"):
        await store.put(path, b"")
    assert await store.list("models/m") == ["models/m/10/a", "models/m/2/a", "models/m/2/b"]
    assert await store.list("models/m/2") == ["models/m/2/a", "models/m/2/b"]
    assert await store.list("none") == []
    assert len(await store.list("")) == 5


async def test_what_is_not_there_is_an_error_to_read_and_none_to_delete(store: ObjectStore) -> None:
    for read in (store.get("none"), anext(store.stream("none"))):
        with pytest.raises(NotFound, match="there is no object") as raised:
            await read
        assert raised.value.reason == "OBJECT_NOT_FOUND"
    with pytest.raises(NotFound):
        store.read_bytes("none")
    await store.delete("none")
    await store.put("a", b"1")
    await store.delete("a")
    assert not await store.exists("a")
    assert await store.list("") == []


async def test_a_store_that_does_not_do_its_work_is_unavailable(tmp_path: Path) -> None:
    store = ObjectStore.from_uri(tmp_path.as_uri())
    await store.put("a", b"1")
    # No folder can be made where a file is: as with a full disk, it is not the request that is wrong.
    for call in (store.put("a/b", b"1"), store.get("a/b"), anext(store.stream("a/b"))):
        with pytest.raises(Unavailable, match="does not do its work") as raised:
            await call
        assert raised.value.reason == "STORE_UNAVAILABLE"
        assert "\n" not in raised.value.message
    with pytest.raises(Unavailable):
        store.write_bytes("a/b", b"1")
    with pytest.raises(Unavailable):
        store.read_bytes("a/b")


@pytest.mark.parametrize(
    "path", ["../outside", "a/../../outside", "a//b", "/absolute", "", "a/./b", "a/", "a\nb", "a\0b"]
)
async def test_a_path_cannot_leave_the_store(store: ObjectStore, path: str) -> None:
    with pytest.raises(InvalidArgument, match="is no path of an object") as raised:
        await store.put(path, b"1")
    assert raised.value.reason == "INVALID_OBJECT_PATH"
    for read in (store.get(path), store.exists(path), anext(store.stream(path)), store.delete(path)):
        with pytest.raises(InvalidArgument):
            await read


@pytest.mark.parametrize("path", ["with space", "ümlaut/ß", "100%", "a+b=c&d", "model:1", "%2e%2e/x"])
async def test_names_of_all_kinds_are_kept(store: ObjectStore, path: str) -> None:
    await store.put(path, path.encode())
    assert await store.list("") == [path]
    assert await store.get(path) == path.encode()
    assert store.path(store.uri(path)) == path


async def test_an_address_leads_back_to_its_object(store: ObjectStore, uri: str) -> None:
    assert store.uri("a/b") == f"{uri}/a/b"
    assert store.path(f"{uri}/a/b") == "a/b"
    with pytest.raises(InvalidArgument, match="is not in the object store") as raised:
        store.path("s3://elsewhere/a")
    assert raised.value.reason == "FOREIGN_OBJECT"


async def test_a_delta_table_lives_in_the_same_store(store: ObjectStore) -> None:
    address = store.uri("datasets/numbers")
    for number in range(2):
        await asyncio.to_thread(
            deltalake.write_deltalake,
            address,
            pa.table({"n": [number]}),
            mode="append",
            storage_options=delta_storage_options(),
        )
    table = deltalake.DeltaTable(address, storage_options=delta_storage_options())
    assert sorted(pa.table(table.to_pyarrow_table())["n"].to_pylist()) == [0, 1]
    paths = await store.list("datasets/numbers/_delta_log")
    assert [path for path in paths if path.endswith(".json")] == [
        f"datasets/numbers/_delta_log/{number:020}.json" for number in range(2)
    ]


async def test_two_writers_cannot_both_make_a_delta_version(store: ObjectStore) -> None:
    """The store's own conditional put decides, without a lock table."""
    address = store.uri("datasets/contended")

    def append(number: int) -> None:
        deltalake.write_deltalake(
            address, pa.table({"n": [number]}), mode="append", storage_options=delta_storage_options()
        )

    await asyncio.to_thread(append, -1)
    await asyncio.gather(*(asyncio.to_thread(append, number) for number in range(6)))
    table = deltalake.DeltaTable(address, storage_options=delta_storage_options())
    assert table.version() == 6
    assert sorted(pa.table(table.to_pyarrow_table())["n"].to_pylist()) == list(range(-1, 6))


@pytest.mark.parametrize(
    "wrong", ["/folder", "file://host/folder", "http://host/x", "s3:///prefix", "", "s3:"]
)
def test_another_address_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidArgument, match="is neither") as raised:
        ObjectStore.from_uri(wrong)
    assert raised.value.reason == "INVALID_STORE_URI"


def test_a_folder_is_created_where_it_is_missing(tmp_path: Path) -> None:
    ObjectStore.from_uri(f"file://{tmp_path}/a/b/")
    assert (tmp_path / "a" / "b").is_dir()


async def test_files_in_s3_are_found_by_patterns_and_fetched(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_s3(monkeypatch, s3_endpoint)
    root = f"s3://{BUCKET}/{uuid.uuid4()}"
    store = ObjectStore.from_uri(root)
    for path in ("day=1/a.csv", "day=1/deep/a.csv", "day=2/b.csv.gz", "day=2/c.parquet", "other/d.csv"):
        await store.put(path, path.encode())
    found = await find_files([f"{root}/day=*/*.csv*", f"{root}/other/d.csv"])
    assert [file.name.removeprefix(f"{root}/") for file in found] == [
        "day=1/a.csv",
        "day=2/b.csv.gz",
        "other/d.csv",
    ]
    async with found[1].on_disk() as path:
        assert path.name.endswith(".csv.gz")
        assert path.read_bytes() == b"day=2/b.csv.gz"
    assert not path.exists()
    for nothing in (f"{root}/none.csv", f"{root}/day=3/*.csv"):
        with pytest.raises(NotFound, match="there is no file"):
            await find_files([nothing])


def test_an_object_is_written_piece_by_piece_and_there_once_it_is_closed(store: ObjectStore) -> None:
    parts = [bytes([number]) * (1 << 20) for number in range(12)]
    with store.open_writer("a/large") as writer:
        for part in parts:
            assert writer.write(part) == len(part)
        with pytest.raises(NotFound):
            store.read_bytes("a/large")
    assert store.read_bytes("a/large") == b"".join(parts)


def test_a_writer_whose_store_is_away_fails_as_a_file_does(monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(monkeypatch, f"http://127.0.0.1:{free_port()}")
    store = ObjectStore.from_uri(f"s3://{BUCKET}/tests", retries=0)

    def write(size: int) -> None:
        with store.open_writer("a") as writer:
            writer.write(bytes(size))

    # At once, and in parts.
    for size in (1, 12 << 20):
        with pytest.raises(OSError, match="S3"):
            write(size)


def test_an_object_is_replaced_where_it_is_what_it_was(store: ObjectStore) -> None:
    store.write_bytes("a/b", b"first")
    store.replace_bytes("a/b", b"second", before=b"first")
    assert store.read_bytes("a/b") == b"second"
    with pytest.raises(Aborted, match="somebody else wrote") as changed:
        store.replace_bytes("a/b", b"third", before=b"first")
    assert changed.value.reason == "OBJECT_CHANGED"
    assert store.read_bytes("a/b") == b"second"
    with pytest.raises(NotFound):
        store.replace_bytes("a/c", b"", before=b"")


def test_in_s3_an_object_that_changes_while_it_is_compared_is_not_replaced(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_s3(monkeypatch, s3_endpoint)
    store = ObjectStore.from_uri(f"s3://{BUCKET}/tests/{uuid.uuid4()}")
    store.write_bytes("a", b"first")
    put = obstore.put

    def overtaken(*given: Any, **options: Any) -> object:
        monkeypatch.setattr(obstore, "put", put)
        store.write_bytes("a", b"another")
        return put(*given, **options)

    monkeypatch.setattr(obstore, "put", overtaken)
    with pytest.raises(Aborted):
        store.replace_bytes("a", b"second", before=b"first")
    assert store.read_bytes("a") == b"another"


def test_what_dead_writers_left_is_removed_once_it_is_old(store: ObjectStore, tmp_path: Path) -> None:
    left = tmp_path / "a store" / "of mine" / "folder" / "below" / "b.parquet#12"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"half of")
    store.write_bytes("folder/a", b"whole")
    now = datetime.now(UTC)
    in_folder = int(store.root.startswith("file:"))
    assert store.drop_unfinished("folder", now - timedelta(hours=1)) == in_folder
    assert left.exists()
    assert store.drop_unfinished("folder", now + timedelta(hours=1)) == 0
    assert left.exists() == (not in_folder)
    assert store.read_bytes("folder/a") == b"whole"


async def test_a_profile_that_has_keys_opens_the_store_and_its_tables(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_s3(monkeypatch, s3_endpoint)
    keys = [(name.lower(), os.environ[name]) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
    file = tmp_path / "credentials"
    file.write_text("[lab]\n" + "".join(f"{name} = {value}\n" for name, value in keys))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    uri = f"s3://{BUCKET}/tests/{uuid.uuid4()}"
    store = ObjectStore.from_uri(uri)
    await store.put("a", b"1")
    assert await store.get("a") == b"1"
    deltalake.write_deltalake(f"{uri}/table", pa.table({"x": [1]}), storage_options=delta_storage_options())
    table = deltalake.DeltaTable(f"{uri}/table", storage_options=delta_storage_options())
    assert table.version() == 0
