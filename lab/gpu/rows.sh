# Sourced by visit.sh. `rows`: what passes of 1 to 16 tokens take. `cache`: a mixture of experts against stock's cache of experts.
# shellcheck shell=bash disable=SC2154 # `what`, `bin`, `models`, `OUT`, `threads`, `MIB` and the functions are visit.sh's

if [[ $what == *rows* ]]; then
    synth 8b llama3-8b --type f16
    for rows in ${ROWS:-1 2 4 8 16}; do
        bench "8b ${ROWS_VRAM:-4G}, $rows rows" -m "$models/8b.gguf" -p "$rows" -n 0 -r "${REPEAT:-20}" \
            --pipeshard --pipeshard-vram "${ROWS_VRAM:-4G}" --pipeshard-report "$OUT/rows-$rows.json"
        note "    $(python3 - "$OUT/rows-$rows.json" "$rows" "${REPEAT:-20}" <<'PY'
import json, sys
report, passes = json.load(open(sys.argv[1])), int(sys.argv[3]) + 1
print(f"{report['bytes_streamed'] / passes / 1e9:.2f} GB streamed a pass; stalls {report['stalls']}; host waits {report['host_waits']}")
PY
)"
    done
fi

if [[ $what == *cache* ]]; then
    # Routers of random weights choose experts almost evenly: the worst case for a cache of them. A trained one is less even.
    synth 30b qwen3-30b-a3b --type q4_0
    context=${CONTEXT_MIB:-640}
    answers() { # LABEL ARGS... : a prompt of 512 tokens and 64 generated behind it
        local label=$1 out_file; shift
        echo "--- answers $label: $*" >> "$OUT/visit.log"
        out_file=$(mktemp)
        sampled with_library timeout "${LIMIT:-120}" "$bin/llama-batched-bench" -m "$models/30b.gguf" -t "$threads" -c 2048 -b 2048 \
            -npp 512 -ntg 64 -npl 1,1,1 --output-format jsonl "$@" 2>> "$OUT/visit.log" > "$out_file"
        note "$(printf '%-46s peak %6s MiB  %s' "$label" "$MIB" "$(python3 - "$out_file" <<'PY'
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1]) if line.startswith("{")]
prompt, token = sorted(r["speed_pp"] for r in rows), sorted(r["speed_tg"] for r in rows)
print(f"prompt {prompt[len(rows) // 2]:.0f} ({prompt[0]:.0f} to {prompt[-1]:.0f}), generated {token[len(rows) // 2]:.1f} ({token[0]:.1f} to {token[-1]:.1f})" if rows else "no result")
PY
)")"
    }
    for gib in ${CACHE_GIB:-4 8}; do
        most=$((gib * 1024 + context))
        for flags in "-lm none" ""; do
            # shellcheck disable=SC2086 # flags are words
            answers "$gib GiB: stock, cache of 256 MiB ${flags:-mapped}" --fit off -ngl 99 -ncmoe 99 --moe-cache-mib 256 $flags
            cache=$((256 + most - MIB - 24))
            # shellcheck disable=SC2086
            [ "$cache" -gt 0 ] && answers "$gib GiB: stock, cache of $cache MiB ${flags:-mapped}" --fit off -ngl 99 -ncmoe 99 --moe-cache-mib "$cache" $flags
        done
        answers "$gib GiB: pipeshard" --pipeshard --pipeshard-vram "${gib}G"
    done
fi
