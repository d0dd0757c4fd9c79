"""Files that are deployed beside the code: topic files, Triton's runtime, Envoy's templates."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
# A checkout has libs/headrace/runtime/resources.py and deploy/; a wheel has headrace/_deploy.
_CANDIDATES = (_PACKAGE / "_deploy", _PACKAGE.parents[1] / "deploy")


def deploy_path(relative: str) -> Path:
    """Return the path of a file or folder under deploy/, in a checkout or in the installed wheel.

    Raises FileNotFoundError naming every place that was looked at.
    """
    for root in _CANDIDATES:
        path = root / relative
        if path.exists():
            return path
    looked = ", ".join(str(root / relative) for root in _CANDIDATES)
    raise FileNotFoundError(f"deploy/{relative} is not installed; looked at {looked}")
