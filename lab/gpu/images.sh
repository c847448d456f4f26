# Sourced by visit.sh. A picture of random pixels, and a question about one.
# shellcheck shell=bash disable=SC2154 # `bin`, `models`, `OUT`, `threads` and the functions are visit.sh's

picture() { # WIDTH HEIGHT FILE
    python3 - "$@" <<'PY'
import random, struct, sys
width, height, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
row = (width * 3 + 3) // 4 * 4
header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54 + row * height, 0, 0, 54, 40, width, height, 1, 24, 0, row * height, 0, 0, 0, 0)
open(path, "wb").write(header + random.Random(1).randbytes(row * height))
PY
}

# One image and some tokens: embeddings to $models/NAME.emb, text, driver's peak in MiB, and what was said of times.
look() { # NAME MODEL IMAGE ARGS...
    local name=$1 model=$2 image=$3 code
    shift 3
    echo "--- look $name: $*" >> "$OUT/visit.log"
    sampled env MTMD_DEBUG_EMBEDDINGS="$models/$name.emb" PIPESHARD_LIBRARY="$bin/libpipeshard.so" timeout "${LIMIT:-120}" "$bin/llama-mtmd-cli" -m "$models/$model.gguf" \
        --mmproj "$models/$model-mmproj.gguf" --image "$image" -p "what is this" -n "${GENERATE:-16}" -t $((threads / 2)) -c "${CONTEXT:-8192}" --temp 0 "$@" \
        > "$models/$name.txt" 2> "$models/$name.log"
    code=$?
    tail -n 60 "$models/$name.log" >> "$OUT/visit.log"
    LOOK="exit $code, peak $MIB MiB, $(grep -aoE 'encoding done in [0-9]+ ms' "$models/$name.log" | tail -n 1)"
}
