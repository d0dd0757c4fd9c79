"""A Python package as a model's file: the folder that holds it, packed into an archive.

Beside its source lie `requirements.txt`, where it needs other packages, each with its hashes,
`signature.yaml`, and `package.yaml`:

steps: [clean:Clean, model:Model, answer:Answer]     # module:Class; each takes what the one before answers
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from headrace.client.yaml_reader import Document, Place
from headrace.errors import FieldViolation, InvalidArgument
from headrace.model_formats import ModelFormat

REASON: Final = "INVALID_PACKAGE"
STEPS: Final = "package.yaml"
SIGNATURE: Final = "signature.yaml"
REQUIREMENTS: Final = "requirements.txt"
# What deploy/triton/package_worker.py reads of the steps: there is no YAML beside a model.
MANIFEST: Final = "headrace.json"

_NAME: Final = r"[^\W\d]\w*"
_STEP: Final = re.compile(rf"{_NAME}(\.{_NAME})*:{_NAME}")
# The same files are the same archive, whenever and wherever they were written.
_WRITTEN: Final = (1980, 1, 1, 0, 0, 0)
_READABLE: Final = 0o100644 << 16


@contextmanager
def packed(folder: Path) -> Iterator[Path]:
    """The archive of a package, while the block lasts. Raises InvalidArgument INVALID_PACKAGE."""
    steps = read_steps(folder)
    with tempfile.TemporaryDirectory(prefix="headrace-package-") as temporary:
        archive = Path(temporary) / ModelFormat.PYTHON.file
        try:
            # Not compressed: what is large is weights, and two releases of zlib write two archives.
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as written:
                written.writestr(_entry(MANIFEST), json.dumps({"steps": steps}))
                for file in _files(folder):
                    entry = _entry(file.relative_to(folder).as_posix())
                    # Of large ones the archive must know before it begins.
                    entry.file_size = file.stat().st_size
                    with file.open("rb") as source, written.open(entry, "w") as target:
                        shutil.copyfileobj(source, target)
        except OSError as error:
            raise InvalidArgument(REASON, f"{folder} cannot be read: {error}") from error
        yield archive


def read_steps(folder: Path) -> list[str]:
    """Names of a package's steps, its requirements checked. Raises InvalidArgument INVALID_PACKAGE."""
    path = folder / STEPS
    document = Document(_text(path), str(path), reason=REASON)
    place = document.mapping(document.root, ("steps",), ("steps",)).get("steps")
    requires = _check_requirements(folder / REQUIREMENTS)
    steps = []
    for item in document.items(place):
        steps.append(document.text(item))
        _check_step(document, item, steps[-1], folder, requires=requires)
    if place is not None and not steps:
        document.fail(place, "needs one step or more")
    if (folder / MANIFEST).exists():
        document.fail(document.root, f"{MANIFEST} is what the import makes of it, and cannot lie beside it")
    document.check()
    return steps


def _check_step(document: Document, place: Place, name: str, folder: Path, *, requires: bool) -> None:
    if not _STEP.fullmatch(name):
        document.fail(place, f"must be module:Class, such as model:Model, not {name!r}")
        return
    module = re.split("[.:]", name)[0]
    # It may come with a requirement.
    if not (requires or (folder / module).is_dir() or (folder / f"{module}.py").is_file()):
        document.fail(place, f"there is no {module}.py beside it")


def _check_requirements(path: Path) -> bool:
    """Whether there are any. Raises InvalidArgument where one could be another package tomorrow."""
    if not path.exists():
        return False
    problems = []
    found = False
    for number, line in _logical_lines(_text(path)):
        found = True
        problem = _problem(line)
        if problem:
            problems.append(FieldViolation(REQUIREMENTS, f"{number}: {problem}"))
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InvalidArgument(REASON, f"{path}:{problems[0].description}{more}", fields=problems)
    return found


def _problem(requirement: str) -> str:
    if requirement.startswith("-"):
        return "where packages come from is a matter of the machine that serves them: no options here"
    if "://" in requirement:
        return "packages come by name and version, not by address"
    if "==" in requirement and "--hash=" in requirement:
        return ""
    return "a version and its hashes are missing; `uv pip compile --generate-hashes` writes them"


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Requirements, each with the number of its first line; comments and empty lines left out."""
    begun, number = "", 0
    for line_number, line in enumerate(text.splitlines(), start=1):
        stripped = re.sub(r"(^|\s)#.*", "", line).strip()
        number = number if begun else line_number
        begun += " " + stripped.removesuffix("\\").strip()
        if not stripped.endswith("\\"):
            if begun.strip():
                yield number, begun.strip()
            begun = ""
    if begun.strip():
        yield number, begun.strip()


def _files(folder: Path) -> list[Path]:
    """What belongs to the package, always in the same order: no caches, no environments, nothing hidden."""
    environments = {path.parent for path in folder.rglob("pyvenv.cfg")}
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)
        and environments.isdisjoint(path.parents)
    ]


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _WRITTEN)
    entry.external_attr = _READABLE
    return entry


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(REASON, f"{path} cannot be read: {error}") from error
