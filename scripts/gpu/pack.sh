#!/usr/bin/env bash
# Packs what a GPU machine without Rust and without network needs: the tools, libpipeshard.so, a libggml-cuda.so of the same
# llama.cpp and the visit script. Usage: scripts/gpu/pack.sh LIBGGML_CUDA_SO [OUT_DIR]
# With CUPTI=DIR (its include and lib, as in the wheel nvidia-cuda-cupti of the toolkit's version) and CUDA_INCLUDE=DIR, what
# `visit.sh kernels` records with comes along.
set -euo pipefail
cd "$(dirname "$0")/../.."
cuda=${1:?usage: scripts/gpu/pack.sh LIBGGML_CUDA_SO [OUT_DIR]}
out=${2:-.gpu}
bin=${CARGO_TARGET_DIR:-target}/release
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir -p "$stage/bin" "$out"
tools=(pipeshard llama-completion llama-bench llama-batched-bench llama-perplexity llama-cli llama-server)
for tool in "${tools[@]}"; do cp -L "$bin/$tool" "$stage/bin/"; done
cp -P "$bin"/lib*.so* "$stage/bin/"
cp -L "$cuda" "$stage/bin/libggml-cuda.so"
strip --strip-debug "$stage"/bin/* 2>/dev/null || true
cp scripts/gpu/visit.sh scripts/gpu/profile.sh scripts/gpu/kernels.py "$stage/"
cc -O2 -Wall -shared -fPIC scripts/gpu/memory.c -o "$stage/bin/libmemory.so" -lpthread -ldl
cc -O3 -Wall scripts/gpu/rest.c -o "$stage/bin/rest" -lpthread
cc -O3 -mavx2 -Wall scripts/gpu/pages.c -o "$stage/bin/pages" -lpthread -ldl
if [ -n "${CUPTI:-}" ]; then
    cupti=$(basename "$(ls "$CUPTI"/lib/libcupti.so.* | head -n 1)")
    cc -O2 -Wall -shared -fPIC -I"$CUPTI/include" -I"${CUDA_INCLUDE:?CUPTI needs cuda.h: set CUDA_INCLUDE}" scripts/gpu/kernels.c \
        -o "$stage/bin/libkernels.so" -L"$CUPTI/lib" -l:"$cupti"
    cp -L "$CUPTI/lib/$cupti" "$stage/bin/"
fi
tar -C "$stage" -cf - . | xz -T0 -3 > "$out/tools.tar.xz"
ls -la "$out"
