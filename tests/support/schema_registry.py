"""A real schema registry: Apicurio's, or the one that HEADRACE_TEST_SCHEMA_REGISTRY gives the address of."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

import httpx

from headrace.embedded.parts.process import Part, free_port, http_status

VERSION: Final = "2.6.13.Final"
NEEDED: Final = ("java", "mvn")
NONE: Final[Mapping[str, str]] = {}
_API: Final = "/apis/ccompat/v7"
_COPY: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"


class Apicurio(Part):
    """Apicurio Registry with Confluent's API, in memory; Java 17 runs it, and Maven fetches it once."""

    name = "schema-registry"
    hint = "Apicurio Registry needs Java 17 or newer and, the first time, Maven."
    start_seconds = 600.0

    def __init__(self, folder: Path, logs: Path) -> None:
        super().__init__(folder, logs)
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}{_API}"
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._program = cache / "headrace" / f"apicurio-registry-{VERSION}"

    async def prepare(self) -> None:
        """Fetch it once (140 MB)."""
        if self._program.is_dir():
            return
        # Into a folder beside, then renamed: an interrupted download is never taken for a whole one.
        partial = self._program.with_name(f"{self._program.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        artifact = f"io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
        await self.run_before(
            "mvn", "-q", "-B", _COPY, f"-Dartifact={artifact}", f"-DoutputDirectory={partial}"
        )
        archive = partial / f"apicurio-registry-app-{VERSION}-all.tar.gz"
        with tarfile.open(archive) as packed:
            packed.extractall(partial, filter="data")
        archive.unlink()
        partial.rename(self._program)

    def command(self) -> Sequence[str]:
        """Quick to start rather than quick at its peak."""
        tuning = ["-Xmx384m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
        listen = ["-Dquarkus.http.host=127.0.0.1", f"-Dquarkus.http.port={self._port}"]
        jar = self._program / f"apicurio-registry-app-{VERSION}-runner.jar"
        return ["java", *tuning, *listen, "-jar", str(jar)]

    async def ready(self) -> bool:
        return await http_status(self._port, f"{_API}/subjects") == 200


class Registry:
    """A running registry, as a producer's serialiser uses it."""

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def through(self, port: int) -> str:
        """The address by way of a proxy."""
        return self.url.replace(f":{self.port}", f":{port}")

    async def register(
        self, subject: str, schema: Mapping[str, object], references: Mapping[str, str] = NONE
    ) -> int:
        """The id of an Avro schema, as the subject's next version.

        `references`: the subjects of those that it refers to, in their first version, by its names for them.
        """
        return await self._register(subject, {"schema": json.dumps(schema)}, references)

    async def register_protobuf(
        self, subject: str, definition: str, references: Mapping[str, str] = NONE
    ) -> int:
        """The id of a Protobuf schema, as the subject's next version; `references` as of Avro."""
        return await self._register(subject, {"schema": definition, "schemaType": "PROTOBUF"}, references)

    async def _register(self, subject: str, schema: Mapping[str, str], references: Mapping[str, str]) -> int:
        listed = [{"name": name, "subject": other, "version": 1} for name, other in references.items()]
        body = {**schema, "references": listed} if listed else schema
        path = f"subjects/{quote(subject, safe='')}/versions"
        async with httpx.AsyncClient(timeout=60) as client:
            answer = await client.post(f"{self.url}/{path}", json=body)
        schema_id: int = answer.raise_for_status().json()["id"]
        return schema_id
