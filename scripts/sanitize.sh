#!/usr/bin/env bash
# Runs tests and one evaluation under sanitizers: scripts/sanitize.sh [threads] [addresses]
# The toolchain is the usual one: RUSTC_BOOTSTRAP lets it instrument code. docs/development.md says what to expect.
set -euo pipefail
cd "$(dirname "$0")/.."

triple=$(rustc -vV | sed -n 's/^host: //p')
nightly_flags="-Cunsafe-allow-abi-mismatch=sanitizer -Cforce-frame-pointers=yes"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Two evaluations on the simulated GPU: streaming under a small budget, and a budget that changes while tokens are made;
# two contexts take turns, the weights are not page-locked, and copies and kernels are delayed at random.
evaluate() {
    local model=$scratch/model.gguf
    # one thread: the end of a scope of threads is seen by nobody where the standard library is not instrumented
    "$@" synth --shape tiny-llama --threads 1 --force "$model" >/dev/null
    local common=(eval "$model" --threads=1 --prompt-tokens=1,40 --generate=4 --ctx=256 --ubatch=64 --contexts=2)
    "$@" "${common[@]}" --vram=12M --sim=vram=64M,pin=off,delay=50us,seed=7 >"$scratch/small"
    "$@" "${common[@]}" --vram=32M --budget-at=1=20M,3=32M --sim=vram=64M,delay=50us,seed=7 >"$scratch/changes"
    "$@" "${common[@]}" >"$scratch/stock"
    local answers=()
    for run in stock small changes; do
        answers+=("$(grep -o '"logits_hash":"[^"]*"' "$scratch/$run" | sort -u)")
    done
    if [ -z "${answers[0]}" ] || [ "${answers[1]}" != "${answers[0]}" ] || [ "${answers[2]}" != "${answers[0]}" ]; then
        echo "the answers differ" >&2
        exit 1
    fi
    for run in small changes; do
        grep -q '"engaged":true' "$scratch/$run" || { echo "$run: pipeshard was not engaged" >&2; exit 1; }
    done
}

# ThreadSanitizer: everything that Rust code does, in tests of what has threads and in two evaluations. llama.cpp is not
# instrumented and nor is Rust's standard library: scripts/tsan.supp says what follows from that.
threads() {
    export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=target/tsan
    # what is loaded later finds the run-time library in the executable
    export RUSTFLAGS="-Zsanitizer=thread -Clink-arg=-rdynamic $nightly_flags"
    export TSAN_OPTIONS="suppressions=$PWD/scripts/tsan.supp ignore_noninstrumented_modules=1 halt_on_error=1"
    mkdir -p target/native "target/tsan/$triple"
    ln -sfn "$PWD/target/native" "target/tsan/$triple/native"
    echo "== ThreadSanitizer: tests of the simulated GPU, lanes, arena, hook"
    cargo test --target "$triple" --package pipeshard-sim --lib
    cargo test --target "$triple" --package pipeshard --lib -- lanes:: arena:: hook::
    echo "== ThreadSanitizer: evaluations"
    cargo build --target "$triple"
    evaluate "target/tsan/$triple/debug/pipeshard-lab"
}

# AddressSanitizer and LeakSanitizer: Rust and llama.cpp both instrumented, with the compiler's own run-time library.
addresses() {
    export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=target/asan
    export RUSTFLAGS="-Zsanitizer=address -Zexternal-clangrt -Clink-arg=-lasan $nightly_flags"
    export CFLAGS="-fsanitize=address -fno-omit-frame-pointer -g1" CXXFLAGS="-fsanitize=address -fno-omit-frame-pointer -g1"
    export PIPESHARD_CMAKE_ARGS="-DCMAKE_C_FLAGS_RELEASE=-O1 -DCMAKE_CXX_FLAGS_RELEASE=-O1" PIPESHARD_TOOLS=""
    export ASAN_OPTIONS="detect_leaks=1 detect_stack_use_after_return=1"
    echo "== AddressSanitizer: evaluations"
    cargo build --target "$triple"
    # cargo puts the run-time library last, and it insists on being first
    evaluate env LD_PRELOAD="$(gcc -print-file-name=libasan.so)" "target/asan/$triple/debug/pipeshard-lab"
}

for part in "${@:-threads addresses}"; do
    for name in $part; do
        case $name in
            threads) (threads) ;;
            addresses) (addresses) ;;
            *) echo "no such part: $name (there are: threads, addresses)" >&2; exit 2 ;;
        esac
    done
done
echo "nothing found"
