# Sourced by visit.sh. What plans of several measured profiles are worth on one machine: tokens per second, and what was predicted.
# PROFILES: files; their names are the labels.
# shellcheck shell=bash disable=SC2154 # `bin`, `models`, `OUT`, `threads` and the functions are visit.sh's
synth cosmos-f16 cosmos-reason1-7b --type f16
for profile in ${PROFILES:?files of profiles}; do
    label=$(basename "$profile" .json)
    for gib in ${GIBS:-2}; do
        for how in plain trace; do
            given=(--pipeshard-report "$OUT/$label-$gib-$how.report.json")
            [ "$how" = trace ] && given+=(--pipeshard-trace "$OUT/$label-$gib.trace.json")
            export LLAMA_ARG_PIPESHARD_PROFILE=$profile
            bench "$label ${gib}G $how" -m "$models/cosmos-f16.gguf" -t "$((threads / 2))" -p 0 -n "${GENERATE:-24}" -d "${DEPTH:-1024}" -r 2 -v --pipeshard --pipeshard-vram "${gib}G" "${given[@]}"
            unset LLAMA_ARG_PIPESHARD_PROFILE
        done
    done
done
grep -aE "pipeshard: (planned|speed|ubatches|measuring|engaged)|--- bench" "$OUT/visit.log" > "$OUT/profiles.txt"
