#!/usr/bin/env bash
# Runs every fuzz target (or those that are named) for so many seconds each: scripts/fuzz.sh 60 [target…]
# Needs cargo-fuzz (cargo install cargo-fuzz). The toolchain is the usual one: RUSTC_BOOTSTRAP lets it instrument code.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
shift || true
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    for folder in fuzz/corpus/*/; do targets+=("$(basename "$folder")"); done
fi
if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "cargo-fuzz is missing: cargo install cargo-fuzz" >&2
    exit 1
fi
export RUSTC_BOOTSTRAP=1
triple=$(rustc -vV | sed -n 's/^host: //p')

# llama.cpp is the one that the tests link with, not built again.
mkdir -p target/native "fuzz/target/$triple"
ln -sfn "$PWD/target/native" "fuzz/target/$triple/native"

failed=()
for target in "${targets[@]}"; do
    echo "== fuzz $target, $seconds s"
    # What libFuzzer finds goes into a folder of its own; the committed seeds are read only.
    found=fuzz/target/found/$target
    mkdir -p "$found"
    if ! cargo fuzz run "$target" "$found" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=512 -max_len=16384 \
        -print_final_stats=1 -verbosity=0; then
        failed+=("$target")
    fi
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "inputs that fail are in fuzz/artifacts/: ${failed[*]}. Mend, then move them to fuzz/corpus/." >&2
    exit 1
fi
