"""Where a stack's parts listen: from the environment, or from the embedded stack's own file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headrace.errors import FailedPrecondition, Unavailable

DATA_VARIABLE: Final = "HEADRACE_DATA"
DEFAULT_DATA: Final = Path(".headrace")
STACK_FILE: Final = "stack.json"

# Name in stack.json -> environment variable that overrides it.
VARIABLES: Final[Mapping[str, str]] = {
    "ingestion": "HEADRACE_INGESTION_TARGET",
    "ingestion_http": "HEADRACE_INGESTION_HTTP_TARGET",
    "scheduling": "HEADRACE_SCHEDULING_TARGET",
    "training": "HEADRACE_TRAINING_TARGET",
    "registry": "HEADRACE_REGISTRY_TARGET",
    "inference": "HEADRACE_INFERENCE_TARGET",
    "inference_protocol": "HEADRACE_INFERENCE_PROTOCOL_TARGET",
    "kafka": "HEADRACE_KAFKA_BOOTSTRAP",
    "postgres": "HEADRACE_POSTGRES_DSN",
    "store": "HEADRACE_STORE_URI",
}
IDEMPOTENCE_VARIABLE: Final = "HEADRACE_KAFKA_IDEMPOTENCE"


@dataclass(frozen=True, slots=True)
class Targets:
    """Addresses by part name, as `VARIABLES` lists them."""

    addresses: Mapping[str, str] = field(default_factory=dict)
    # Whether the broker has idempotent producers; the embedded one has not.
    kafka_idempotence: bool = True
    # Folder of the parts' log files; None where they are not on this machine.
    logs: Path | None = None
    # What to say where an address is missing.
    origin: str = "the environment"

    def address(self, part: str) -> str:
        """Return where a part listens. Raises Unavailable/NO_TARGET, saying how to name it."""
        found = self.addresses.get(part, "")
        if not found:
            raise Unavailable(
                "NO_TARGET",
                f"{self.origin} names no address of {part}",
                metadata={"next": f"Start a stack with `headrace up`, or set {VARIABLES.get(part, part)}."},
            )
        return found

    @staticmethod
    def discover(data: Path | None = None, environment: Mapping[str, str] | None = None) -> Targets:
        """Read the stack file in `data`, if there is one, and let the environment override it.

        `data` defaults to HEADRACE_DATA, then ./.headrace. Raises FailedPrecondition/BROKEN_STACK_FILE.
        """
        environment = os.environ if environment is None else environment
        folder = data or Path(environment.get(DATA_VARIABLE) or DEFAULT_DATA)
        file = folder / STACK_FILE
        stack = _read(file)
        addresses = dict(stack.addresses)
        addresses |= {part: environment[name] for part, name in VARIABLES.items() if environment.get(name)}
        idempotence = environment.get(IDEMPOTENCE_VARIABLE, "").lower()
        return Targets(
            addresses=addresses,
            kafka_idempotence=idempotence in ("1", "true", "yes") if idempotence else stack.kafka_idempotence,
            logs=stack.logs,
            origin=str(file) if file.exists() else f"no stack runs in {folder}, and the environment",
        )


def _read(file: Path) -> Targets:
    try:
        content = json.loads(file.read_text())
        return Targets(
            addresses={str(part): str(target) for part, target in content["targets"].items()},
            kafka_idempotence=bool(content.get("kafka_idempotence", False)),
            logs=Path(content["logs"]) if content.get("logs") else None,
        )
    except (FileNotFoundError, NotADirectoryError):
        return Targets()
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise FailedPrecondition(
            "BROKEN_STACK_FILE", f"{file} is not a stack's file: {error!r}; `headrace down` removes it"
        ) from error
