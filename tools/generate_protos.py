"""Generate the Python code of `protos/` into `libs/` (or into the folder that is given).

`make protos` writes it; `make lint` writes it elsewhere and compares, so that the committed code is
always the protos' own. Run with the project's environment: grpcio-tools brings protoc, mypy-protobuf
the type stubs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
# protovalidate's own rules: a compiled copy must be importable as `buf.validate`.
THIRD_PARTY = PROTOS / "third_party"


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
        f"--mypy_out={out}",
    ]
    calls = [
        [*common, *without_service],
        [*common, f"--grpc_python_out={out}", f"--mypy_grpc_out={out}", *with_service],
    ]
    for call in calls:
        if protoc.main(call) != 0:
            raise SystemExit("protoc failed; what it said stands above")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "libs"
    target.mkdir(parents=True, exist_ok=True)
    generate(target)
