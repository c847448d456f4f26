#!/usr/bin/env bash
# Runs cargo with the arguments given, and shows how far llama.cpp's own build is meanwhile:
# cargo keeps to itself what build scripts print. Works the same with and without a terminal.
set -euo pipefail
cd "$(dirname "$0")/.."

log=${CARGO_TARGET_DIR:-target}/native/build.log
started=$(mktemp)

watch() {
    local every=15 clear="" line last=""
    if [ -t 2 ]; then every=3 clear=$'\r\033[K'; fi
    while sleep "$every"; do
        [ "$log" -nt "$started" ] || continue
        # "[12/240] Building CXX object src/CMakeFiles/llama.dir/llama.cpp.o": the count, the verb and the file are enough.
        line=$(tail -c 65536 "$log" 2>/dev/null | sed -n 's|^\(\[[0-9]*/[0-9]*\]\) \([A-Z][a-z]*\) .*/\([^/ ]*\)$|\1 \2 \3|p' | tail -n 1)
        if [ -n "$line" ] && [ "$line" != "$last" ]; then
            printf '%s   llama.cpp %s\n' "$clear" "$line" >&2
            last=$line
        fi
    done
}

watch &
watcher=$!
trap 'kill "$watcher" 2>/dev/null || true; rm -f "$started"' EXIT
cargo "$@"
