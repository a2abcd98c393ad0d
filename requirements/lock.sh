#!/bin/sh
# Resolves pyproject.toml into the five locks, for every platform at once, with hashes and without any index address.
# The others are held to the versions of dev-cpu, so that what is tested is what is served.
set -eu
cd "$(dirname "$0")/.."
resolve() {
    out=$1
    shift
    uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet \
        --output-file "requirements/$out.txt" "$@"
}
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
everything='--extra serve --extra train --extra timm --extra mlflow --extra heif --extra tracing --extra score --extra s3 --extra gcs --extra ray --extra bench --extra dev'
# shellcheck disable=SC2086
resolve dev-cpu --extra cpu $everything
grep -vE '^ +--hash' requirements/dev-cpu.txt | sed 's/ \\$//' > "$constraints"
# shellcheck disable=SC2086
resolve dev-gpu --extra gpu $everything --constraint "$constraints"
resolve serve-cpu --extra serve --extra cpu --constraint "$constraints"
resolve serve-gpu --extra serve --extra gpu --constraint "$constraints"
resolve score-cpu --extra serve --extra score --extra s3 --extra gcs --extra cpu --constraint "$constraints"
