#!/bin/sh
# Resolves pyproject.toml into the four locks, for every platform at once, with hashes and without any index address.
# The others are held to the versions of dev-cpu, so that what is tested is what is served.
set -eu
cd "$(dirname "$0")/.."
resolve() {
    out=$1
    shift
    uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
        --no-emit-index-url --no-emit-find-links --quiet --output-file "requirements/$out.txt" "$@"
}
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
resolve dev-cpu --extra serve --extra train --extra cpu --extra dev
grep -vE '^ +--hash' requirements/dev-cpu.txt | sed 's/ \\$//' | grep -v '^onnxruntime==' > "$constraints"
resolve dev-gpu --extra serve --extra train --extra gpu --extra dev --constraint "$constraints"
resolve serve-cpu --extra serve --extra cpu --constraint "$constraints"
resolve serve-gpu --extra serve --extra gpu --constraint "$constraints"
