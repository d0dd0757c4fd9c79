"""Generate the Python code of `protos/` into `libs/`; with `--check`, compare instead of writing.

Run with the project's environment on PATH: grpcio-tools brings protoc, mypy-protobuf the type stubs.
"""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
# protovalidate's own rules: a compiled copy must be importable as `buf.validate`.
THIRD_PARTY = PROTOS / "third_party"
GENERATED = ("headrace/api", "headrace/events", "buf")


def generate(out: Path) -> None:
    """Run protoc over every proto file, into `out`."""
    own = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("headrace/**/*.proto"))
    with_service = [name for name in own if "/api/" in name]
    without_service = [name for name in own if "/events/" in name] + ["buf/validate/validate.proto"]
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    common = [
        "protoc",
        f"--proto_path={PROTOS}",
        f"--proto_path={THIRD_PARTY}",
        f"--proto_path={well_known}",
        f"--python_out={out}",
        f"--mypy_out=quiet:{out}",
    ]
    for call in (
        [*common, *without_service],
        [*common, f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}", *with_service],
    ):
        if protoc.main(call) != 0:
            sys.exit("protoc failed; what it said stands above")


def files(root: Path) -> set[Path]:
    """Generated files below `root`, relative to it."""
    return {
        path.relative_to(root)
        for folder in GENERATED
        for path in (root / folder).rglob("*_pb2*")
        if path.suffix in {".py", ".pyi"}
    }


def check() -> None:
    """Exit with 1 where the committed code is not what the protos generate."""
    committed = ROOT / "libs"
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        names = files(fresh) | files(committed)
        _, different, missing = filecmp.cmpfiles(fresh, committed, map(str, names), shallow=False)
    if different or missing:
        sys.exit(f"not what the protos generate; run `make protos`: {', '.join(different + missing)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the committed code")
    if parser.parse_args().check:
        check()
    else:
        generate(ROOT / "libs")
