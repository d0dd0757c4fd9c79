"""Objects in a local folder or in S3 (or what speaks its protocol)."""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import (
    GenericError,
    JoinError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, S3Store

from headrace.errors import Aborted, InvalidArgument, NotFound, Unavailable
from headrace.objects.aws_profile import profile_credentials

if TYPE_CHECKING:  # these exist for type checkers only
    from _typeshed import ReadableBuffer
    from obstore import WritableFile
    from obstore.store import ClientConfig, S3Config

CHUNK_BYTES = 1 << 20
# What is written piece by piece is sent in parts; S3 takes none that are smaller.
_PART_BYTES: Final = 5 << 20
_PARTS_AT_ONCE: Final = 2
_PAGE: Final = 1000
# Not what was asked for but the store is at fault: network, disk, credentials.
_AWAY = (GenericError, JoinError, PermissionDeniedError, UnauthenticatedError)
# What a file is called in a folder until all of it is there.
_UNFINISHED: Final = re.compile(r"#\d+$")
# How the library tells that a path is a folder's, leads through a file, or has too long a name.
_NO_PATH: Final = re.compile(rf"\(os error ({errno.EISDIR}|{errno.ENOTDIR}|{errno.ENAMETOOLONG})\)")
# As many as the library's own default.
_RETRIES: Final = 10
# delta-rs would ask for three minutes before anybody hears that the store is at fault; who writes tries again
# anyway, and says so. For each request:
_TABLE_TIMEOUT: Final = "15s"
_TABLE_RETRIES: Final = 3
_PATIENCE: Final = {"timeout": _TABLE_TIMEOUT, "max_retries": str(_TABLE_RETRIES), "retry_timeout": "60s"}


class ObjectStore:
    """Objects below one root, by relative path: names between single slashes, none of them "." or "..".

    Any other path raises InvalidArgument INVALID_OBJECT_PATH; a store that does not do its work, Unavailable
    STORE_UNAVAILABLE.
    A put is atomic: readers see the old object, then the new one. S3's endpoint and credentials come from
    the usual `AWS_*` environment variables; without keys there, from a web identity's token, the container's
    role, a profile in `~/.aws` that has keys, or the instance's role.
    """

    def __init__(self, uri: str, store: LocalStore | S3Store) -> None:
        self.root = uri.rstrip("/")
        self._store = store

    @classmethod
    def from_uri(cls, uri: str, *, retries: int = _RETRIES, timeout: str | None = None) -> ObjectStore:
        """Open `file:///folder` (created where missing) or `s3://bucket/prefix`. Raises InvalidArgument.

        `retries`: how often a request is sent again to S3, with growing pauses, before Unavailable is raised.
        `timeout`: how long each may take, such as "15s"; 30 seconds where nothing is said.
        """
        parts = urlsplit(uri)
        if parts.scheme == "file" and not parts.netloc:
            folder = Path(unquote(parts.path))
            folder.mkdir(parents=True, exist_ok=True)
            return cls(uri, LocalStore(prefix=folder))
        if parts.scheme == "s3" and parts.netloc:
            prefix = parts.path.strip("/")
            config, client = _s3_options()
            if timeout is not None:
                client["timeout"] = timeout
            s3 = S3Store(
                parts.netloc,
                prefix=prefix or None,
                config=config,
                client_options=client,
                retry_config={"max_retries": retries},
            )
            return cls(uri, s3)
        raise InvalidArgument(
            "INVALID_STORE_URI", f"{uri!r} is neither file:///FOLDER nor s3://BUCKET/PREFIX"
        )

    def uri(self, path: str) -> str:
        """The address of an object."""
        return f"{self.root}/{path}"

    def path(self, uri: str) -> str:
        """The inverse of `uri`. Raises InvalidArgument for an address outside this store."""
        if not uri.startswith(self.root + "/"):
            raise InvalidArgument("FOREIGN_OBJECT", f"{uri!r} is not in the object store {self.root!r}")
        return uri[len(self.root) + 1 :]

    async def put(self, path: str, data: bytes | AsyncIterator[bytes]) -> None:
        """Write an object, whole or not at all."""
        with self._answering():
            await obstore.put_async(self._store, _checked(path), data)

    async def get(self, path: str) -> bytes:
        """Read an object. Raises NotFound."""
        with self._answering():
            try:
                result = await obstore.get_async(self._store, _checked(path))
            except (NotFoundError, FileNotFoundError) as error:
                raise self._missing(path) from error
            return bytes(await result.bytes_async())

    async def size(self, path: str) -> int:
        """How many bytes an object has. Raises NotFound."""
        with self._answering(), self._finding(path):
            return (await obstore.head_async(self._store, _checked(path)))["size"]

    async def get_part(self, path: str, start: int, end: int) -> bytes:
        """The bytes of an object from `start` and before `end`, as far as it has them. Raises NotFound."""
        with self._answering(), self._finding(path):
            return bytes(await obstore.get_range_async(self._store, _checked(path), start=start, end=end))

    async def stream(self, path: str) -> AsyncIterator[bytes]:
        """Read an object in chunks. Raises NotFound."""
        with self._answering():
            try:
                result = await obstore.get_async(self._store, _checked(path))
            except (NotFoundError, FileNotFoundError) as error:
                raise self._missing(path) from error
            async for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)

    async def exists(self, path: str) -> bool:
        """Whether there is such an object."""
        try:
            with self._answering():
                await obstore.head_async(self._store, _checked(path))
        except (NotFoundError, FileNotFoundError):
            return False
        return True

    async def delete(self, path: str) -> None:
        """Remove an object; one that is not there is fine."""
        with suppress(NotFound), self._answering(), self._finding(path):
            await obstore.delete_async(self._store, _checked(path))

    async def list(self, prefix: str) -> list[str]:
        """Paths of the objects in a folder and below, sorted."""
        with self._answering():
            batches = [batch async for batch in obstore.list(self._store, prefix=prefix)]
        return sorted(item["path"] for batch in batches for item in batch)

    async def older(self, folder: str, before: datetime) -> AsyncIterator[str]:
        """Paths of the objects in a folder and below that were last written before a moment."""
        with self._answering():
            async for batch in obstore.list(self._store, prefix=_checked(folder), chunk_size=_PAGE):
                for item in batch:
                    if item["last_modified"] < before:
                        yield item["path"]

    def read_bytes(self, path: str) -> bytes:
        """`get` for code without an event loop. Raises NotFound."""
        try:
            with self._answering():
                return bytes(obstore.get(self._store, _checked(path)).bytes())
        except (NotFoundError, FileNotFoundError) as error:
            raise self._missing(path) from error

    def write_bytes(self, path: str, data: bytes) -> None:
        """`put` for code without an event loop."""
        with self._answering():
            obstore.put(self._store, _checked(path), data)

    def open_writer(self, path: str) -> io.RawIOBase:
        """A file to write an object into, for code without an event loop: it is there when that is closed.

        Raises OSError, as files do, where the store does not take it.
        """
        return _Upload(
            obstore.open_writer(
                self._store, _checked(path), buffer_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE
            )
        )

    def replace_bytes(self, path: str, data: bytes, *, before: bytes) -> None:
        """Write an object in the place of one that has the bytes `before`.

        Raises NotFound, and Aborted OBJECT_CHANGED where it has others by now. S3 compares while it writes;
        in a folder a moment lies in between.
        """
        changed = Aborted("OBJECT_CHANGED", f"somebody else wrote {self.uri(path)} meanwhile")
        try:
            with self._answering():
                found = obstore.get(self._store, _checked(path))
                if bytes(found.bytes()) != before:
                    raise changed
                # Folders compare nothing.
                is_s3 = isinstance(self._store, S3Store)
                obstore.put(
                    self._store, path, data, mode={"e_tag": found.meta["e_tag"]} if is_s3 else "overwrite"
                )
        except (NotFoundError, FileNotFoundError) as error:
            raise self._missing(path) from error
        except PreconditionError as error:
            raise changed from error

    def drop_unfinished(self, folder: str, before: datetime) -> int:
        """Remove what writers that died left of objects in a folder and below; answer how many remain.

        One that was begun since `before` remains: it may be finished yet. Nothing else shows them. In S3 they
        are parts of uploads, and for the bucket's lifecycle to end.
        """
        if not isinstance(self._store, LocalStore) or self._store.prefix is None:
            return 0
        remaining = 0
        for file in (Path(self._store.prefix) / _checked(folder)).rglob("*"):
            if not _UNFINISHED.search(file.name):
                continue
            # It may be finished, or given up, at this moment.
            with suppress(FileNotFoundError):
                if file.stat().st_mtime < before.timestamp():
                    file.unlink()
                else:
                    remaining += 1
        return remaining

    def delete_object(self, path: str) -> None:
        """`delete` for code without an event loop."""
        try:
            with self._answering():
                obstore.delete(self._store, _checked(path))
        except (NotFoundError, FileNotFoundError):
            return

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Raise Unavailable where the store does not do what it was asked."""
        try:
            yield
        except _AWAY as error:
            # What follows the first line is the library's inside.
            reason = str(error).partition("\n")[0]
            raise Unavailable(
                "STORE_UNAVAILABLE", f"the object store {self.root} does not do its work: {reason}"
            ) from error

    @contextmanager
    def _finding(self, path: str) -> Iterator[None]:
        """Raise NotFound where there is no such object, nor can be one in a folder."""
        try:
            yield
        except (NotFoundError, FileNotFoundError) as error:
            raise self._missing(path) from error
        except GenericError as error:
            if _NO_PATH.search(str(error)):
                raise self._missing(path) from error
            raise

    def _missing(self, path: str) -> NotFound:
        return NotFound("OBJECT_NOT_FOUND", f"there is no object {self.uri(path)}")


class _Upload(io.RawIOBase):
    """An object that is being written, as the standard library has files."""

    def __init__(self, file: WritableFile) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return self._file.write(data)
        except _AWAY as error:
            raise OSError(str(error)) from error

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        try:
            self._file.close()
        except _AWAY as error:
            raise OSError(str(error)) from error


def _checked(path: str) -> str:
    if any(name in {"", ".", ".."} for name in path.split("/")) or not path.isprintable():
        raise InvalidArgument("INVALID_OBJECT_PATH", f"{path!r} is no path of an object")
    return path


def delta_storage_options() -> dict[str, str]:
    """What delta-rs needs beside the environment to open tables in the same store.

    Commits are conditional puts: delta-rs asks S3 for them by default.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    options = {**_PATIENCE, **_profile()}
    if endpoint:
        options["AWS_ENDPOINT_URL"] = endpoint
        options["AWS_ALLOW_HTTP"] = str(endpoint.startswith("http:")).lower()
    return options


def table_store(uri: str) -> ObjectStore:
    """The files of one Delta table, asked for with the patience that delta-rs has by its options.

    For what delta-rs' own file system does while it holds the interpreter's lock, so that no thread of the
    process goes on before S3 has answered: opening a file whose size is not known, and writing one.
    """
    return ObjectStore.from_uri(uri, retries=_TABLE_RETRIES, timeout=_TABLE_TIMEOUT)


def _s3_options() -> tuple[S3Config, ClientConfig]:
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    config = cast("S3Config", {name.lower(): value for name, value in _profile().items()})
    if not endpoint:
        return config, {}
    return {**config, "endpoint": endpoint}, {"allow_http": endpoint.startswith("http:")}


def _profile() -> dict[str, str]:
    return profile_credentials(os.environ, Path.home())
