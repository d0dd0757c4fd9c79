"""Protobuf's schema language to descriptors, by protoc in a process of its own.

Anybody may have registered the text: what it does to the compiler, it does to that process.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from headrace.ingestion.domain.avro import UnusableSchema

# No schema is imported by a name that begins with a dot.
_SCHEMA: Final = ".schema.proto"
_IMPORTED: Final = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}/){0,15}[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
# Protoc has these itself.
_OWN: Final = "google/protobuf/"
_MOST_BYTES: Final = 1 << 20
# A tenth of a second is common. Whose takes so much longer would hold up all others' events.
_SECONDS: Final = 60.0
_SHOWN: Final = 200


def compile_proto(definition: str, imported: Mapping[str, str] | None = None) -> bytes:
    """The FileDescriptorSet of a schema and all that it imports, itself the last file.

    `imported`: what it imports besides Protobuf's own types, by the names by which it does. Blocks.
    Raises UnusableSchema.
    """
    imported = imported or {}
    if sum(map(len, (definition, *imported.values()))) > _MOST_BYTES:
        raise UnusableSchema("size", f"has more than {_MOST_BYTES} characters")
    with tempfile.TemporaryDirectory(prefix="headrace-protoc-") as name:
        folder = Path(name)
        for file, text in imported.items():
            _write(folder, file, text)
        (folder / _SCHEMA).write_text(definition, encoding="utf-8", errors="replace")
        compiled = folder / "descriptors"
        # Of what protoc can be told to do, this writes one file and reads none but those of the two folders.
        arguments = [f"-I{folder}", "--include_imports", f"--descriptor_set_out={compiled}", _SCHEMA]
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-m", "grpc_tools.protoc", *arguments],
                cwd=folder,
                # Its parent's has secrets.
                env={},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise UnusableSchema("size", f"takes protoc more than {_SECONDS:g} s") from error
        if done.returncode:
            raise UnusableSchema("protobuf", f"is no Protobuf schema: {_why(done)}")
        return compiled.read_bytes()


def _write(folder: Path, name: str, text: str) -> None:
    """Put what is imported where protoc looks for it, and nowhere else: anybody may have named it."""
    if name.startswith(_OWN):
        return
    if not _IMPORTED.fullmatch(name):
        raise UnusableSchema("references", "refers to another by a name that no import has")
    try:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", errors="replace")
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UnusableSchema("references", f"refers to {name} and to others below it") from error


def _why(done: subprocess.CompletedProcess[bytes]) -> str:
    """What protoc said first of a file, with line and column."""
    said = done.stderr.decode(errors="replace").splitlines()
    about = next((line for line in said if ".proto:" in line), f"protoc ends with {done.returncode}")
    return about.rpartition(f"{_SCHEMA}:")[2][:_SHOWN]
