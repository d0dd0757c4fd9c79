#!/bin/sh
# Fill a virtual environment with exactly what a lock file names, unless it holds that already, and say how long it
# took and how large it is. Usage: fill_environment.sh WHAT FOLDER LOCK UV PYTHON [PROJECT]
# With PROJECT, that folder's own package is installed too, to be edited in place.
set -eu
what=$1 folder=$2 lock=$3 uv=$4 python=$5 project=${6:-}

# What the environment depends on. The stamp is written last: an interrupted filling is begun again. So is one whose
# Python has gone since, as with an upgrade of the system's.
stamp="$folder/filled"
key=$(cat "$lock" "$0" ${project:+"$project/pyproject.toml"} | sha256sum | cut -d' ' -f1)
if [ -x "$folder/bin/python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ]; then
    exit 0
fi

echo "Filling $what into $folder, from $lock ..."
started=$(date +%s)
[ -x "$folder/bin/python" ] || "$uv" venv --quiet --clear --python "$python" "$folder"
rm -f "$stamp"
# Bytecode now, once: where PYTHONDONTWRITEBYTECODE is set, each start would compile every module anew, which takes
# longer than all else that a start does.
if ! "$uv" pip sync --compile-bytecode --python "$folder/bin/python" --require-hashes "$lock"; then
    echo "Filling $what failed; what uv said stands above. Check the network and the free disk space, then try again." >&2
    exit 1
fi
# xds-protos ships an old copy of OpenTelemetry's messages over those of opentelemetry-proto, and which of the two
# wins is chance: put the right ones back (docs/adr/0008).
if grep -q '^xds-protos==' "$lock"; then
    "$uv" pip install --quiet --python "$folder/bin/python" --require-hashes --no-deps \
        --compile-bytecode --reinstall-package opentelemetry-proto --requirements "$lock"
fi
if [ -n "$project" ]; then
    "$uv" pip install --quiet --python "$folder/bin/python" --no-deps --no-build-isolation --editable "$project"
    "$folder/bin/python" -m compileall -q "$project/libs" "$project/services"
    # Now, and not when somebody waits for the first start (docs/adr/0011).
    echo "Compiling what ingestion's batches run through ..."
    "$folder/bin/python" -m headrace.ingestion.warm_up
fi
echo "$key" > "$stamp"
echo "Filled $what: $(($(date +%s) - started)) s, $(du -sh "$folder" | cut -f1)."
