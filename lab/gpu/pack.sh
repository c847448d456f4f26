#!/usr/bin/env bash
# Packs what a GPU machine without Rust and without network needs: the tools, libpipeshard.so, a libggml-cuda.so of the same
# llama.cpp and the visit script. Usage: lab/gpu/pack.sh LIBGGML_CUDA_SO [OUT_DIR]
# Build first: make build test-library.
# With OLD=DIR, the folder of an older build's tools, `visit.sh builds` compares the two.
# With HOST=FILE, a libpipeshard.so.0 with CUDA (crates/pipeshard-capi), `visit.sh host` measures it.
# With CUPTI=DIR (its include and lib, as in the wheel nvidia-cuda-cupti of the toolkit's version) and CUDA_INCLUDE=DIR, what
# `visit.sh kernels` records with comes along.
set -euo pipefail
cd "$(dirname "$0")/../.."
cuda=${1:?usage: lab/gpu/pack.sh LIBGGML_CUDA_SO [OUT_DIR]}
out=${2:-.gpu}
bin=${CARGO_TARGET_DIR:-target}/release
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir -p "$stage/bin/test-hooks" "$out"
tools=(pipeshard pipeshard-lab llama-completion llama-bench llama-batched-bench llama-perplexity llama-cli llama-mtmd-cli llama-server)
for tool in "${tools[@]}"; do cp -L "$bin/$tool" "$stage/bin/"; done
cp -P "$bin"/lib*.so* "$stage/bin/"
cp -L "$bin/../test-hooks/libpipeshard.so" "$stage/bin/test-hooks/"
cp -L "$cuda" "$stage/bin/libggml-cuda.so"
if [ -n "${OLD:-}" ]; then
    mkdir "$stage/bin-old"
    cp -L "$OLD/llama-bench" "$stage/bin-old/"
    cp -P "$OLD"/lib*.so* "$stage/bin-old/"
    rm -f "$stage/bin-old/libggml-cuda.so"
    ln -s ../bin/libggml-cuda.so "$stage/bin-old/libggml-cuda.so"
fi
rm -f "$stage"/bin/*.dwp
strip --strip-debug "$stage"/bin*/* "$stage"/bin/test-hooks/* "$stage"/bin/host/* 2>/dev/null || true
cp lab/gpu/visit.sh lab/gpu/profile.sh lab/gpu/builds.sh lab/gpu/vision.sh lab/gpu/images.sh lab/gpu/encodes.sh lab/gpu/rows.sh lab/gpu/profiles.sh lab/gpu/sharing.sh lab/gpu/live.py lab/gpu/turns.py lab/gpu/share.py lab/gpu/independent.sh lab/gpu/independent.py lab/gpu/kernels.py "$stage/"
cc -O2 -Wall -shared -fPIC lab/gpu/memory.c -o "$stage/bin/libmemory.so" -lpthread -ldl
cc -O3 -Wall lab/gpu/rest.c -o "$stage/bin/rest" -lpthread
cc -O3 -mavx2 -Wall lab/gpu/pages.c -o "$stage/bin/pages" -lpthread -ldl
# HOST: a libpipeshard.so.0 that was built with CUDA, for `visit.sh host`
if [ -n "${HOST:-}" ]; then
    mkdir "$stage/bin/host"
    cp -L "$HOST" "$stage/bin/host/libpipeshard.so.0"
    cc -O2 -Wall -Icrates/pipeshard-capi/include lab/gpu/host.c -o "$stage/bin/host/host" "$stage/bin/host/libpipeshard.so.0" \
        -Wl,-rpath,'$ORIGIN' -Wl,--allow-shlib-undefined -ldl
    cc -O2 -Wall -Icrates/pipeshard-capi/include lab/gpu/host_memory.c -o "$stage/bin/host/host_memory" "$stage/bin/host/libpipeshard.so.0" \
        -Wl,-rpath,'$ORIGIN' -Wl,--allow-shlib-undefined -ldl -lpthread
fi
if [ -n "${CUPTI:-}" ]; then
    cupti=$(basename "$(ls "$CUPTI"/lib/libcupti.so.* | head -n 1)")
    cc -O2 -Wall -shared -fPIC -I"$CUPTI/include" -I"${CUDA_INCLUDE:?CUPTI needs cuda.h: set CUDA_INCLUDE}" lab/gpu/kernels.c \
        -o "$stage/bin/libkernels.so" -L"$CUPTI/lib" -l:"$cupti"
    cp -L "$CUPTI/lib/$cupti" "$stage/bin/"
fi
# PROFILES: measured profiles that come along, for `visit.sh givenplans`
if [ -n "${PROFILES:-}" ]; then
    mkdir "$stage/profiles"
    # shellcheck disable=SC2086 # several files
    cp $PROFILES "$stage/profiles/"
fi
# ONLY=host: nothing but what `visit.sh host` needs
if [ "${ONLY:-}" = host ]; then
    find "$stage/bin" -maxdepth 1 -name 'llama-*' ! -name llama-completion -delete
    rm -f "$stage"/bin/pipeshard
fi
tar -C "$stage" -cf - . | xz --lzma2=preset=4,dict=256MiB > "$out/tools.tar.xz"
ls -la "$out"
