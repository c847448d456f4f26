#!/usr/bin/env bash
# Counts the lines that the patches add to llama.cpp. Fails above the limit, and where a patch touches ggml-cuda.
set -euo pipefail
cd "$(dirname "$0")/.."
limit=800
total=0
status=0
shopt -s nullglob
for patch in patches/*.patch; do
    # Only below a file's first hunk does a leading + mean an added line.
    added=$(awk '/^diff --git |^--- a\/|^--- \/dev\/null/ { hunk = 0 } /^@@ / { hunk = 1; next } hunk && /^\+/ { n++ } END { print n + 0 }' "$patch")
    printf '%6d  %s\n' "$added" "$patch"
    total=$((total + added))
    if grep -qE '^(\+\+\+ b|--- a)/.*ggml-cuda' "$patch"; then
        echo "$patch touches ggml-cuda: a stock libggml-cuda.so must load" >&2
        status=1
    fi
done
printf '%6d  total (limit %d)\n' "$total" "$limit"
if [ "$total" -gt "$limit" ]; then
    echo "the patches add $total lines, $((total - limit)) more than they may" >&2
    status=1
fi
exit $status
