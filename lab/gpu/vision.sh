# Sourced by visit.sh. Encoders of images on a GPU, beside stock: embeddings, text, the driver's peak, and the time of an encode.
# shellcheck shell=bash disable=SC2154 # `bin`, `models`, `OUT`, `threads` and the functions are visit.sh's

# How far embeddings are apart, relative to their size, and whether the text is the same.
apart() { # NAME REFERENCE
    python3 - "$models/$1" "$models/$2" <<'PY'
import struct, sys
def read(path):
    data = open(path, "rb").read()
    tokens, width = struct.unpack_from("<ii", data)
    return struct.unpack_from(f"<{tokens * width}f", data, 8)
try:
    a, b = read(sys.argv[1] + ".emb"), read(sys.argv[2] + ".emb")
except (OSError, struct.error) as why:
    print("no embeddings:", why); sys.exit()
if len(a) != len(b):
    print("other sizes", len(a), len(b)); sys.exit()
size = sum(y * y for y in b) ** 0.5
print(f"apart {sum((x - y) ** 2 for x, y in zip(a, b)) ** 0.5 / size:.1e}, bits {'same' if a == b else 'differ'}, text",
      "same" if open(sys.argv[1] + ".txt").read() == open(sys.argv[2] + ".txt").read() else "differs")
PY
}

synth tiny-qwen2vl tiny-qwen2vl
synth tiny-qwen2vl-mmproj tiny-qwen2vl-mmproj
picture 448 336 "$models/small.bmp"
look tiny-stock tiny-qwen2vl "$models/small.bmp" -ngl 99
look tiny-stock-off tiny-qwen2vl "$models/small.bmp" -ngl 99 -fa off
note "tiny, stock -fa off beside stock: $(apart tiny-stock-off tiny-stock)"
for budget in ${TINY_BUDGETS:-250M 400M 2G}; do
    look "tiny-$budget" tiny-qwen2vl "$models/small.bmp" --pipeshard-vram "$budget" --pipeshard-report "$models/tiny-$budget.json"
    note "tiny $budget: $LOOK; $(apart "tiny-$budget" tiny-stock)"
done
synth cosmos cosmos-reason1-7b --type "${COSMOS_TYPE:-q4_0}"
synth cosmos-mmproj cosmos-reason1-7b-mmproj
[[ $what == *only* ]] || for size in ${SIZES:-868x476 1932x1092 2560x1440}; do
    picture "${size%x*}" "${size#*x}" "$models/$size.bmp"
    look "stock-$size" cosmos "$models/$size.bmp" -ngl 99
    note "$size stock, all in VRAM: $LOOK"
    look "stock-off-$size" cosmos "$models/$size.bmp" -ngl 99 -fa off
    note "$size stock -fa off: $LOOK; $(apart "stock-off-$size" "stock-$size")"
    look "ours-off-$size" cosmos "$models/$size.bmp" --pipeshard-vram "${BUDGET_OFF:-4G}" -fa off --pipeshard-report "$models/off-$size.json"
    note "$size ${BUDGET_OFF:-4G} -fa off: $LOOK; $(apart "ours-off-$size" "stock-off-$size"); $(grep -o '"blocks":[0-9]*' "$models/off-$size.json")"
    for budget in ${BUDGETS_VISION:-2G 3G 4G 12G}; do
        look "$size-$budget" cosmos "$models/$size.bmp" --pipeshard-vram "$budget" --pipeshard-report "$models/$size-$budget.json"
        note "$size $budget: $LOOK; $(apart "$size-$budget" "stock-$size")"
        note "    $(grep -a 'pipeshard: ' "$models/$size-$budget.log" | grep -aE 'vision|encoder|off, because' | tail -n 1 | cut -c1-200)"
    done
done
tar -C "$models" -czf "$OUT/vision.tar.gz" $(cd "$models" && ls ./*.json ./*.log 2>/dev/null)

if [[ $what == *again* ]]; then
    # the first encode of a process and the second, and what was predicted of them
    times() { grep -aoE 'encoding done in [0-9]+ ms' "$models/$1.log" | grep -oE '[0-9]+' | paste -sd ' '; }
    for size in ${SIZES:-868x476 1932x1092 2560x1440}; do
        picture "${size%x*}" "${size#*x}" "$models/$size.bmp"
        look "again-stock-$size" cosmos "$models/$size.bmp" --image "$models/$size.bmp" -ngl 99
        note "$size stock, two encodes: $(times "again-stock-$size") ms; $LOOK"
        for budget in ${AGAIN_BUDGETS:-2G 4G}; do
            look "again-$size-$budget" cosmos "$models/$size.bmp" --image "$models/$size.bmp" --pipeshard-vram "$budget"
            note "$size $budget, two encodes: $(times "again-$size-$budget") ms; $LOOK"
            note "    $("$bin/pipeshard" plan "$models/cosmos.gguf" --mmproj "$models/cosmos-mmproj.gguf" --image "$size" --vram "$budget" -c 8192 --json 2>> "$OUT/visit.log" |
                python3 -c 'import json, sys; i = json.load(sys.stdin)["image"]; print("predicted: encode %.0f ms, on the CPU %.0f ms, peak %.0f MiB, tokens %s, buffers %.0f MiB, smallest budget %.0f MiB" % (i["encode"]["seconds"] * 1e3, i["encode"]["on_cpu"] * 1e3, i["peak"] / 2**20, i["tokens"], i["scratch"] / 2**20, i["minimum_budget"] / 2**20))' 2>&1 | tail -n 1)"
        done
    done
fi
