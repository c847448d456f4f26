#!/usr/bin/env bash
# Runs `pipeshard profile` for two shapes on a GPU machine, times it, and leaves tables, JSON and a picture.
# Usage: profile.sh BIN_DIR OUT_DIR MODELS_DIR THREADS — visit.sh calls it. Models have two layers: their distinct shapes are those of
# all layers, and the profile reads no weights.
set -uo pipefail
bin=${1:?usage: profile.sh BIN_DIR OUT_DIR MODELS_DIR THREADS}
out=${2:?OUT_DIR}
models=${3:?MODELS_DIR}
threads=${4:?THREADS}
export XDG_CACHE_HOME=$models/profile-cache
rm -rf "$XDG_CACHE_HOME"
: > "$out/profile-times.txt"
failed=0

timed() { # LABEL COMMAND...: seconds and the most device memory that was held go to profile-times.txt
    local label=$1 start sampler peak_file code before
    shift
    peak_file=$(mktemp)
    before=$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | head -n 1)
    ( peak=0; while sleep 0.05; do used=$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | head -n 1)
        [ "${used:-0}" -gt "$peak" ] && peak=$used && echo "$peak" > "$peak_file"; done ) & sampler=$!
    start=${EPOCHREALTIME/./}
    timeout 200 "$@"
    code=$?
    local took=$(( ${EPOCHREALTIME/./} - start )) peak=$(( $(cat "$peak_file") + 0 ))
    [ "$peak" -gt 0 ] && peak=$((peak - before))
    # apart from what the command prints
    printf '%-28s %3d.%03d s  exit %d  device memory %d MiB with the context\n' "$label" $((took / 1000000)) $((took / 1000 % 1000)) \
        "$code" "$peak" | tee -a "$out/profile-times.txt" >&2
    kill "$sampler" 2>/dev/null
    wait "$sampler" 2>/dev/null
    [ "$code" -eq 0 ] || failed=1
}

for shape in llama3-8b:f16 qwen3-30b-a3b:q4_0; do
    name=${shape%%:*}
    model=$models/profile-$name.gguf
    [ -s "$model" ] || "$bin/pipeshard-lab" synth --shape "$name" --type "${shape##*:}" --layers 2 "$model" || failed=1
    timed "$name" "$bin/pipeshard" profile "$model" --threads "$threads" > "$out/profile-$name.txt"
    cat "$out/profile-$name.txt"
    timed "$name, kept" "$bin/pipeshard" profile "$model" --threads "$threads" > /dev/null
done
timed "llama3-8b, 4 GiB, again" "$bin/pipeshard" profile "$models/profile-llama3-8b.gguf" --threads "$threads" --vram 4G --refresh \
    > "$out/profile-again.txt"
"$bin/pipeshard" profile --show --json --threads "$threads" --svg "$out/profile.svg" > "$out/profile.json" || failed=1
if [ -n "${FULL:-}" ]; then
    timed "qwen3-30b-a3b, full" "$bin/pipeshard" profile "$models/profile-qwen3-30b-a3b.gguf" --threads "$threads" --full --json \
        > "$out/profile-full.json"
fi
cat "$out/profile-times.txt"
exit "$failed"
