# Sourced by visit.sh. Embeddings of an encoder with random weights, stock's and within budgets, against those of `transformers`.
# shellcheck shell=bash disable=SC2154 # `bin`, `models`, `OUT`, `threads` and the functions are visit.sh's and images.sh's

synth cosmos cosmos-reason1-7b --type "${COSMOS_TYPE:-q4_0}"
synth cosmos-mmproj cosmos-reason1-7b-mmproj
# whole windows; windows that the edge cuts, in both directions; a narrow strip
for size in ${INDEPENDENT_SIZES:-896x448 868x476 1932x1092 1288x140}; do
    image=$models/$size.bmp
    picture "${size%x*}" "${size#*x}" "$image"
    dumped=()
    for way in ${INDEPENDENT_WAYS:-stock stock-off 1G 2G}; do
        case $way in stock) args=(-ngl 99) ;; stock-off) args=(-ngl 99 -fa off) ;; *) args=(--pipeshard-vram "$way") ;; esac
        GENERATE=1 CONTEXT=4096 look "independent-$size-$way" cosmos "$image" "${args[@]}"
        [ -s "$models/independent-$size-$way.emb" ] && dumped+=("$models/independent-$size-$way.emb")
    done
    note "$size: ${#dumped[@]} of 4 encoded"
    found=$(python3 independent.py "$models/cosmos-mmproj.gguf" "$image" "${dumped[@]}" 2>> "$OUT/visit.log") || note "$size: NOT the embeddings of transformers"
    while IFS= read -r line; do note "    $line"; done <<< "$found"
done
