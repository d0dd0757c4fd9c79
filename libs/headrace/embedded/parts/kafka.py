"""Apache Kafka 4 on this machine: KRaft, one node, its jars fetched by Maven, its log in the data folder."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from string import Template

from headrace.embedded.parts.process import Part, kafka_answers
from headrace.runtime.resources import deploy_path

MINIMUM_JAVA = 17
DEPENDENCY_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"


class ApacheKafka(Part):
    """A broker whose log survives a restart."""

    name = "broker"
    hint = f"Apache Kafka needs Java {MINIMUM_JAVA} or newer and, the first time, Maven."
    start_seconds = 60.0
    stop_seconds = 20.0

    def __init__(
        self,
        folder: Path,
        logs: Path,
        port: int,
        controller_port: int,
        *,
        host: str = "127.0.0.1",
        advertised: str = "127.0.0.1",
    ) -> None:
        super().__init__(folder, logs)
        self.bootstrap = f"{advertised}:{port}"
        self._port = port
        self._controller_port = controller_port
        self._host = host
        self._jars = jars_folder()

    @property
    def notice(self) -> str:
        """The jars are fetched once."""
        return "" if _complete(self._jars) else "Maven gets Apache Kafka (about 54 MB), once"

    async def prepare(self) -> None:
        """Fetch the jars once, write the settings, and format the log's folder once."""
        for program in ("java",) if _complete(self._jars) else ("java", "mvn"):
            if shutil.which(program) is None:
                raise self.failed(f"cannot start: {program} is not installed")
        if not _complete(self._jars):
            await self._fetch_jars()
        properties = Template(deploy_path("kafka/server.properties").read_text()).substitute(
            listener=f"{self._host}:{self._port}",
            advertised_listener=self.bootstrap,
            controller_port=self._controller_port,
            log_folder=self.folder / "log",
        )
        self._properties.write_text(properties)
        if not (self.folder / "log" / "meta.properties").exists():
            cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            # One argument: an id may begin with a hyphen, and would be taken for an option by itself.
            await self.run_before(
                *self._java("kafka.tools.StorageTool"),
                "format",
                f"--cluster-id={cluster}",
                f"--config={self._properties}",
            )

    def command(self) -> Sequence[str]:
        """Run the broker."""
        return [*self._java("kafka.Kafka"), str(self._properties)]

    async def ready(self) -> bool:
        """It answers with metadata."""
        return await kafka_answers(self.bootstrap)

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    def _java(self, main: str) -> list[str]:
        # One small broker: quick to start rather than quick at its peak.
        tuning = ["-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
        return ["java", *tuning, "-cp", str(self._jars / "*"), main]

    async def _fetch_jars(self) -> None:
        # Into a folder beside, then renamed: an interrupted download is never taken for a whole one.
        partial = self._jars.with_name(f"{self._jars.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        pom = deploy_path("kafka/pom.xml")
        await self.run_before(
            "mvn", "-q", "-B", "-f", str(pom), DEPENDENCY_PLUGIN, f"-DoutputDirectory={partial}"
        )
        try:
            partial.rename(self._jars)
        except OSError:  # another stack was quicker
            shutil.rmtree(partial)


def jars_folder() -> Path:
    """Where the jars of this POM are kept between stacks: in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    pom = hashlib.sha256(deploy_path("kafka/pom.xml").read_bytes()).hexdigest()
    return cache / "headrace" / f"kafka-{pom[:12]}"


def _complete(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("kafka_2.13-*.jar"))
