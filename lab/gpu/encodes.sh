# Sourced by visit.sh. Where the time of an encode goes: kernels and copies by CUPTI (pack.sh with CUPTI=), of stock and within budgets.
# shellcheck shell=bash disable=SC2154 # `bin`, `models`, `OUT`, `threads` and the functions are visit.sh's and vision.sh's

synth cosmos cosmos-reason1-7b --type "${COSMOS_TYPE:-q4_0}"
synth cosmos-mmproj cosmos-reason1-7b-mmproj
for size in ${SIZES:-868x476 1288x728 1932x1092}; do
    image=$models/$size.bmp
    picture "${size%x*}" "${size#*x}" "$image"
    for way in stock ${ENCODE_BUDGETS:-2G 4G 12G}; do
        args=(-ngl 99); [ "$way" = stock ] || args=(--pipeshard-vram "$way" --pipeshard-report "$models/encode-$size-$way.json")
        # without the recorder first, for the times: the encodes of three images
        look "encode-$size-$way" cosmos "$image" --image "$image" --image "$image" "${args[@]}"
        note "$size $way: encodes $(grep -aoE 'encoding done in [0-9]+ ms' "$models/encode-$size-$way.log" | grep -oE '[0-9]+' | paste -sd ' ') ms; $MIB MiB"
        [ -e "$bin/libkernels.so" ] || continue
        CUDA_INJECTION64_PATH="$bin/libkernels.so" KERNELS_OUT="$models/recorded" look "recorded-$size-$way" cosmos "$image" --image "$image" --image "$image" -lv 5 "${args[@]}"
        { echo "== $size $way"; grep -aoE 'encoding done in [0-9]+ ms' "$models/recorded-$size-$way.log"; python3 kernels.py bursts --top 12 --tail 2000000 "$models/recorded"; } >> "$OUT/encodes.txt" 2>&1
    done
done
tar -C "$models" -czf "$OUT/encodes.tar.gz" $(cd "$models" && ls ./encode-*.json ./encode-*.log 2>/dev/null)
