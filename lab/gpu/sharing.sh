# Sourced by visit.sh. `sharing`: what CPU and link get of the host's memory while a dense model generates, by the kind of memory that
# the weights lie in, by the share that is streamed, and by the number of threads.
# shellcheck shell=bash disable=SC2154 # `what`, `bin`, `models`, `OUT`, `threads` and the functions are visit.sh's

synth 8b llama3-8b --type f16
{ uname -a; cat /sys/kernel/mm/transparent_hugepage/{enabled,shmem_enabled}; df -h /dev/shm; lscpu | grep -iE "numa|L3|thread|core"; } >> "$OUT/visit.log" 2>&1
common=(-m "$models/8b.gguf" -p 0 -n "${GENERATE:-32}" -r "${REPEAT:-2}" -b 2048 -ub 512)
PEAK=off

shown() { # REPORT: what a pass streamed and what was predicted
    note "    $(python3 - "$1" "${GENERATE:-32}" "${REPEAT:-2}" <<'PY'
import json, sys
report = json.load(open(sys.argv[1]))
passes = max(report["passes"]["decode"], 1)
shown = {
    "GB a pass": round(report["bytes_streamed"] / passes / 1e9, 2),
    "stalls": report["stalls"],
    "waits": report["host_waits"],
    "calibration": report.get("calibration"),
    "predicted": {k: report["predicted"][k] for k in ("decode_pass_seconds", "decode_bytes_streamed", "limit")} if report.get("predicted") else None,
    "units": report["units"]["decode"],
}
print(json.dumps(shown))
PY
)"
}

"$bin/pipeshard" profile --show >> "$OUT/visit.log" 2>&1
for gib in ${SHARING_GIB:-2}; do
    for mode in "" "-lm none"; do
        # shellcheck disable=SC2086 # flags are words
        bench "${gib}G stock, all on the CPU ${mode:-mapped}" "${common[@]}" -ngl 0 -nopo 1 $mode
        for percent in ${STREAMS:-found 0 15 35}; do
            name="$gib-$percent${mode:+-none}"
            [ "$percent" = found ] || export PIPESHARD_DEBUG_DECODE_STREAM=$percent
            # shellcheck disable=SC2086
            bench "${gib}G streams $percent ${mode:-mapped}" "${common[@]}" $mode --pipeshard --pipeshard-vram "${gib}G" \
                --pipeshard-report "$OUT/sharing-$name.json"
            unset PIPESHARD_DEBUG_DECODE_STREAM
            shown "$OUT/sharing-$name.json"
        done
    done
    for count in ${SHARING_THREADS:-15 14 12}; do
        threads_all=$threads threads=$count
        bench "${gib}G stock on the CPU, $count threads, -lm none" "${common[@]}" -ngl 0 -nopo 1 -lm none
        bench "${gib}G found, $count threads" "${common[@]}" --pipeshard --pipeshard-vram "${gib}G" --pipeshard-report "$OUT/sharing-$gib-t$count.json"
        shown "$OUT/sharing-$gib-t$count.json"
        threads=$threads_all
    done
done
if [ -n "${SHARING_PAGES:-}" ]; then
    for count in 8 12 16; do log "$bin/pages" "$count" 8; log "$bin/pages" "$count" "$models/8b.gguf"; done
fi
for file in "$HOME"/.cache/pipeshard/*/*.json "${XDG_CACHE_HOME:-$HOME/.cache}"/pipeshard/*.json; do [ -s "$file" ] && cp "$file" "$OUT/"; done
