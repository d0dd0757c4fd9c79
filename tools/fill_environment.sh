#!/bin/sh
# Fill a virtual environment with exactly what a lock file names, and say how long it took and how large it is.
# Usage: fill_environment.sh WHAT FOLDER LOCK UV PYTHON
set -eu
what=$1 folder=$2 lock=$3 uv=$4 python=$5

echo "Filling $what ($folder) from $lock ..."
started=$(date +%s)
[ -x "$folder/bin/python" ] || "$uv" venv --quiet --python "$python" "$folder"
if ! "$uv" pip sync --python "$folder/bin/python" --require-hashes "$lock"; then
    echo "Filling $what failed; what uv said stands above. Check the network and the free disk space, then try again." >&2
    exit 1
fi
# xds-protos ships an old copy of OpenTelemetry's messages over those of opentelemetry-proto, and which of the two
# wins is chance: put the right ones back (docs/adr/0008).
if grep -q '^xds-protos==' "$lock"; then
    "$uv" pip install --quiet --python "$folder/bin/python" --require-hashes --no-deps \
        --reinstall-package opentelemetry-proto --requirements "$lock"
fi
echo "Filled $what: $(($(date +%s) - started)) s, $(du -sh "$folder" | cut -f1)."
