#!/usr/bin/env bash
# Runs on a GPU machine: correctness first, then measurements. Everything goes to $OUT/visit.log; the summary is printed last.
# Usage: visit.sh [correct] [searched] [sanitize] [trace] [decode] [sequences] [planned] [depth] [locked] [handover] [fits] [kernels] [memory] [rest] [pages] [fetch] [shared] [kv] [long] [speed] [matrix] [bench] [profile] [builds] [neighbours] [rows] [cache] [sharing] [live] [host] [hostmemory] [hosttps] [vision [again [only]]] [encodes] [turns] [independent] [twoservers] [givenplans] — what to do; the first four by default. Expects the unpacked
# tools in ./bin. `bench` runs `pipeshard-lab grids` with BENCH_ARGS (--quick) and MINUTES; its results stay in BENCH_DIR, so the
# next visit to the same machine takes up where this one ended. `profile` runs profile.sh beside this script, with PROFILE_ARGS.
set -uo pipefail
cd "$(dirname "$0")"
OUT=${OUT:-$PWD/out}
mkdir -p "$OUT"
# what is measured are plans of this build and profile, and no earlier ones
export PIPESHARD_PLAN_CACHE=off
models=${MODELS:-/dev/shm/pipeshard-models}
mkdir -p "$models"
bin=$PWD/bin
export LD_LIBRARY_PATH="$bin:/usr/local/cuda/lib64:${LD_LIBRARY_PATH:-}"
threads=${THREADS:-$(nproc)}
what=${*:-correct sanitize trace speed}
summary=()
note() { summary+=("$*"); echo "== $*" | tee -a "$OUT/visit.log"; }
log() { echo "--- $*" >> "$OUT/visit.log"; with_library "$@" >> "$OUT/visit.log" 2>&1; }

# Switches for tests exist in a library of its own; a release has none of them.
with_library() { # COMMAND...
    local library=$bin/libpipeshard.so
    if env | grep -q '^PIPESHARD_DEBUG_'; then library=$bin/test-hooks/libpipeshard.so; fi
    PIPESHARD_LIBRARY=$library "$@"
}

nvidia-smi --query-gpu=name,driver_version,memory.total,memory.used,pcie.link.gen.current,pcie.link.width.current --format=csv,noheader | tee -a "$OUT/visit.log"
lscpu | grep -E "Model name|^CPU\(s\)" | tee -a "$OUT/visit.log"

synth() { # NAME SHAPE ARGS...
    local name=$1 shape=$2; shift 2
    [ -s "$models/$name.gguf" ] || log "$bin/pipeshard-lab" synth --shape "$shape" "$@" "$models/$name.gguf"
}

verify() { # LABEL MODEL BUDGET ARGS...
    local label=$1 model=$2 budget=$3; shift 3
    local out
    echo "--- verify $label $budget $*" >> "$OUT/visit.log"
    if out=$(with_library timeout 120 "$bin/pipeshard" verify "$models/$model.gguf" --vram "$budget" --threads 8 "$@" 2>&1); then
        note "ok   $label $budget: $(grep -o 'same answers.*' <<<"$out")"
    else
        note "FAIL $label $budget: $(tail -n 1 <<<"$out" | cut -c1-300)"
    fi
    echo "$out" >> "$OUT/visit.log"
}

# A model's logits without and with delays on all lanes and 0xFF in fresh memory: how many distinct ones, and what SHOWN picks out
# of the reports, each that occurs once.
same_bits() { # LABEL MODEL MIB SHOWN ARGS...
    local label=$1 model=$2 mib=$3 shown=$4 seed beside lines=()
    shift 4
    for seed in 0 1 2 3; do
        local noise=()
        # what makes the delays takes 8 MiB of the budget
        beside=0
        [ "$seed" = 0 ] || { noise=(PIPESHARD_DEBUG_NOISE=$seed PIPESHARD_DEBUG_FILL=1); beside=8; }
        lines+=("$(env PIPESHARD_RESERVE=0 PIPESHARD_LIBRARY="$bin/test-hooks/libpipeshard.so" "${noise[@]}" timeout 60 "$bin/pipeshard" eval "$models/$model.gguf" --threads 8 --vram $((mib + beside))M "$@" \
            2>> "$OUT/visit.log" | python3 -c '
import json, sys
run = json.load(sys.stdin)
shown = run["report"]
for key in sys.argv[1].split("."):
    shown = shown[key]
print("".join(r["logits_hash"] for r in run["results"]), shown)' "$shown")")
    done
    local distinct occurred
    distinct=$(printf '%s\n' "${lines[@]%% *}" | sort -u | wc -l)
    occurred=$(printf '%s\n' "${lines[@]#* }" | sort -u | paste -sd '|')
    note "$label ${mib}M: $distinct distinct of ${#lines[@]} runs; $shown $occurred"
}

if [[ $what == *correct* ]]; then
    synth tiny-llama tiny-llama
    synth tiny-llama-576 tiny-llama-576
    synth tiny-llama-768 tiny-llama-768
    synth tiny-qwen3moe tiny-qwen3moe
    synth tiny-gemma3 tiny-gemma3
    cases=(tiny-llama tiny-llama-576 tiny-llama-768 tiny-qwen3moe tiny-gemma3)
    [ -s "$models/smollm2.gguf" ] && cases+=(smollm2)
    for model in "${cases[@]}"; do
        # the backend's own memory is larger than these models: it is left out of the small budgets
        for budget in ${BUDGETS:-60M 80M}; do
            PIPESHARD_RESERVE=0 verify "$model" "$model" "$budget" --reference same
        done
        verify "$model" "$model" 600M --reference same
    done
    export PIPESHARD_RESERVE=0
    for model in tiny-llama-576 tiny-qwen3moe; do
        PIPESHARD_DEBUG_FILL=1 verify "$model, memory filled with 0xFF" "$model" 60M --reference same
        for seed in 1 2 3; do
            PIPESHARD_DEBUG_NOISE=$seed PIPESHARD_DEBUG_FILL=1 verify "$model, noise $seed" "$model" 60M --reference same
        done
        PIPESHARD_PAGE_LOCK=off verify "$model, staging ring" "$model" 60M --reference same
    done
    verify "tiny-llama against all in VRAM" tiny-llama 60M --reference gpu --tolerance 1
    [ -s "$models/smollm2.gguf" ] && verify "smollm2 against all in VRAM" smollm2 60M --reference gpu --tolerance 5
    unset PIPESHARD_RESERVE
fi

if [[ $what == *searched* ]]; then
    # plans that were searched for, tokens that stream among them: delays on both lanes and 0xFF in fresh memory change no bit
    synth long-llama tiny-llama --layers 24
    synth tiny-qwen3moe tiny-qwen3moe
    synth tiny-gemma3 tiny-gemma3
    for model in long-llama tiny-qwen3moe tiny-gemma3; do
        for mib in ${MIBS:-60 90}; do
            same_bits "searched $model" "$model" "$mib" units.decode --prompt-tokens 1,7,33,600 --generate 16
        done
    done
fi

if [[ $what == *sanitize* ]] && command -v compute-sanitizer >/dev/null; then
    echo "--- compute-sanitizer" >> "$OUT/visit.log"
    PIPESHARD_RESERVE=0 timeout 200 compute-sanitizer --tool memcheck --error-exitcode 9 \
        "$bin/pipeshard" eval "$models/tiny-llama-576.gguf" --prompt-tokens 33 --generate 2 --vram 60M > "$OUT/sanitizer.log" 2>&1
    note "memcheck: exit $?, $(grep -E 'ERROR SUMMARY' "$OUT/sanitizer.log" | tail -n 1)"
fi

device_mib() { nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | head -n 1; }

# Runs a command. MIB: by how much the device memory in use was higher meanwhile than before, at the most.
# PEAK=off leaves the sampling out, which takes a core from those that generate.
sampled() { # COMMAND...
    local before peak_file sampler code
    peak_file=$(mktemp)
    before=$(device_mib)
    echo "$before" > "$peak_file"
    ( [ "${PEAK:-on}" = on ] || exit; peak=0; while sleep 0.03; do used=$(device_mib)
        [ "${used:-0}" -gt "$peak" ] && peak=$used && echo "$peak" > "$peak_file"; done ) & sampler=$!
    "$@"
    code=$?
    kill "$sampler" 2>/dev/null; wait "$sampler" 2>/dev/null
    MIB=$(( $(cat "$peak_file") - before ))
    return "$code"
}

bench() { # LABEL ARGS... : one line of llama-bench results per test
    local label=$1 out_file out; shift
    echo "--- bench $label: $*" >> "$OUT/visit.log"
    out_file=$(mktemp)
    sampled with_library timeout "${LIMIT:-150}" "$bin/llama-bench" -t "$threads" -o jsonl "$@" 2>> "$OUT/visit.log" > "$out_file"
    out=$(cat "$out_file")
    echo "$out" >> "$OUT/bench.jsonl"
    local results
    results=$(python3 - "$out" <<'PY'
import json, sys
cells = []
for line in sys.argv[1].splitlines():
    try: r = json.loads(line)
    except ValueError: continue
    name = f"pp{r['n_prompt']}" if r['n_prompt'] else f"tg{r['n_gen']}"
    cells.append(f"{name} {r['avg_ts']:.1f} ±{r['stddev_ts']:.1f}")
print("; ".join(cells) or "no result")
PY
)
    note "$(printf '%-46s peak %6s MiB  %s' "$label" "$MIB" "$results")"
}

if [[ $what == *trace* ]]; then
    # where the time of a pass goes: one timeline per model and budget
    synth 8b llama3-8b --type f16
    synth 30b qwen3-30b-a3b --type q4_0
    context=${CONTEXT_MIB:-527}
    for gib in ${GIBS:-4}; do
        for model in ${TRACE_MODELS:-8b 30b}; do
            for prompt in ${TRACE_PROMPTS:-2048}; do
                given=(-ub "$prompt"); [ "${UBATCH:-}" = planned ] && given=()
                log timeout 100 "$bin/llama-bench" -m "$models/$model.gguf" -t "$threads" -p "$prompt" -n 16 -r 3 -b "$prompt" "${given[@]}" -v \
                    --pipeshard --pipeshard-vram $((gib * 1024 - context))M \
                    --pipeshard-report "$OUT/trace-$model-${gib}g-$prompt.report.json" --pipeshard-trace "$OUT/trace-$model-${gib}g-$prompt.json"
                note "trace $model ${gib}G pp$prompt: $(grep -E "pp$prompt|tg16" "$OUT/visit.log" | tail -n 2 | awk -F'|' '{print $(NF-2), $(NF-1)}' | tr '\n' ';')"
            done
        done
    done
fi

if [[ $what == *sequences* ]]; then
    # where the time of a pass of many sequences goes, by itself and with a timeline
    synth 30b qwen3-30b-a3b --type q4_0
    for count in ${SEQUENCES:-64}; do
        common=(-m "$models/30b.gguf" -t "$threads" -c $((count * 1024)) -b 2048 -ub 512 -npp 896 -ntg 32 -npl "$count" -pps -v
            --pipeshard --pipeshard-vram "${BUDGET:-8G}")
        for how in plain trace; do
            given=(--pipeshard-report "$OUT/sequences-$count-$how.report.json")
            [ "$how" = trace ] && given+=(--pipeshard-trace "$OUT/sequences-$count.json")
            log timeout 100 "$bin/llama-batched-bench" "${common[@]}" "${given[@]}"
            note "$count sequences, $how: $(grep -aE '^\| +896 ' "$OUT/visit.log" | tail -n 1)"
        done
    done
fi

if [[ $what == *decode* ]]; then
    # how decode depends on the share of the ring that is streamed through
    synth 8b llama3-8b --type f16
    free=$(nvidia-smi --query-gpu=memory.free --format=csv,noheader,nounits | head -n 1)
    context=${CONTEXT_MIB:-527}
    common=(-m "$models/8b.gguf" -p "${DECODE_PROMPT:-512}" -n 48 -r "${REPEAT:-3}" -b 2048 -ub 2048)
    for gib in ${GIBS:-4 8}; do
        for percent in ${STREAMS:-0 20 35 50 65}; do
            PIPESHARD_DEBUG_DECODE_STREAM=$percent bench "8b ${gib}G streams $percent %" "${common[@]}" \
                --pipeshard --pipeshard-vram $((gib * 1024 - context))M --pipeshard-report "$OUT/decode-${gib}g-$percent.json"
        done
        [ -n "${SKIP_STOCK:-}" ] || bench "8b ${gib}G stock --fit, mmap" "${common[@]}" -fitt $((free - gib * 1024)) -fitc 4096
    done
fi

if [[ $what == *planned* ]]; then
    # what the plan chooses by itself, with what it predicted
    synth 8b llama3-8b --type f16
    synth 30b qwen3-30b-a3b --type q4_0
    context=${CONTEXT_MIB:-527}
    for gib in ${GIBS:-4 8}; do
        for model in ${MODELS_PLANNED:-8b 30b}; do
            for candidate in ${CANDIDATES:-found}; do
                [ "$candidate" = found ] || export PIPESHARD_DEBUG_CANDIDATE=$candidate
                # shellcheck disable=SC2086
                bench "$model ${gib}G planned, $candidate" -m "$models/$model.gguf" ${TESTS:--p 32 -p 512 -p 4096 -n 48} -r "${REPEAT:-2}" -b 4096 -v \
                    --pipeshard --pipeshard-vram $((gib * 1024 - context))M
                unset PIPESHARD_DEBUG_CANDIDATE
            done
        done
    done
    grep -aE "pipeshard: (planned|ubatches|measuring|nothing)|--- bench" "$OUT/visit.log" > "$OUT/planned.txt"
fi

if [[ $what == *depth* ]]; then
    # generation behind a long prompt; TRACE=on: one timeline each, whose watchers take two cores from the CPU's part
    synth 8b llama3-8b --type f16
    synth 30b qwen3-30b-a3b --type q4_0
    mkdir -p "$OUT/depth"
    for gib in ${GIBS:-4 8}; do
        for model in ${DEPTH_MODELS:-8b 30b}; do
            for ubatch in ${UBATCHES:-planned 512}; do
                given=(); [ "$ubatch" = planned ] || given=(-ub "$ubatch")
                [ "${TRACE:-off}" = off ] || given+=(--pipeshard-trace "$OUT/depth/$model-${gib}g-$ubatch.trace.json")
                bench "$model ${gib}G behind ${DEPTH:-3968}, ubatch $ubatch" -m "$models/$model.gguf" -p 0 -n "${GENERATE:-32}" -d "${DEPTH:-3968}" -r 2 \
                    -b 4096 "${given[@]}" -v --pipeshard --pipeshard-vram "${gib}G" --pipeshard-report "$OUT/depth/$model-${gib}g-$ubatch.report.json"
            done
        done
    done
    grep -aE "pipeshard: (planned|ubatches|measuring|nothing)|--- bench" "$OUT/visit.log" > "$OUT/planned.txt"
    tar -C "$OUT" -czf "$OUT/depth.tar.gz" depth && rm -r "$OUT/depth"
fi

if [[ $what == *locked* ]]; then
    # what page-locking costs the CPU's part of a token: the same placement from memory of each kind, in turn
    synth 30b qwen3-30b-a3b --type q4_0
    { uname -a; cat /sys/kernel/mm/transparent_hugepage/{enabled,shmem_enabled}; df -h /dev/shm; lscpu | grep -iE "numa|L3|thread"; } >> "$OUT/visit.log" 2>&1
    common=(-m "$models/30b.gguf" -p 0 -n "${GENERATE:-64}" -d "${DEPTH:-1024}" -r 2 -b 2048 -ub 512)
    for round in $(seq "${ROUNDS:-2}"); do
        bench "$round stock, mapped" "${common[@]}" -ngl 99 -ncmoe "${NCMOE:-40}"
        bench "$round stock, page-locked" "${common[@]}" -ngl 99 -ncmoe "${NCMOE:-40}" -lm none
        bench "$round pipeshard, page-locked" "${common[@]}" --pipeshard --pipeshard-vram "${BUDGET:-4G}" -v
        PIPESHARD_PAGE_LOCK=off bench "$round pipeshard, not page-locked" "${common[@]}" --pipeshard --pipeshard-vram "${BUDGET:-4G}" -v
    done
    grep -aE "pipeshard: (planned|ubatches|measuring|nothing)|--- bench" "$OUT/visit.log" > "$OUT/planned.txt"
fi

if [[ $what == *handover* ]]; then
    # results between device and CPU in the compute lane's order, and as ggml's scheduler copies them, in turn
    synth 30b qwen3-30b-a3b --type q4_0
    common=(-m "$models/30b.gguf" -p 0 -n "${GENERATE:-64}" -d "${DEPTH:-1024}" -r 2 -b 2048 -ub 512)
    for round in $(seq "${ROUNDS:-3}"); do
        for budget in ${BUDGETS_HANDOVER:-4G 60G}; do
            bench "$round $budget in order" "${common[@]}" --pipeshard --pipeshard-vram "$budget" -v --pipeshard-report "$OUT/report-$budget.json"
            PIPESHARD_DEBUG_STOCK_HAND_OVER=1 bench "$round $budget with waits" "${common[@]}" --pipeshard --pipeshard-vram "$budget" -v
        done
        bench "$round stock, mapped" "${common[@]}" -ngl 99 -ncmoe "${NCMOE:-40}"
        bench "$round stock, all in VRAM" "${common[@]}" -ngl 99
    done
    grep -aE "pipeshard: (planned|ubatches|measuring|nothing)|--- bench" "$OUT/visit.log" > "$OUT/planned.txt"
fi

if [[ $what == *fits* ]]; then
    # generation with everything in VRAM, stock and pipeshard in turn, by what each of CUDA's and pipeshard's ways does to it
    synth 30b qwen3-30b-a3b --type q4_0
    # FITS_TESTS: what llama-bench is asked for, several sets with semicolons between; the ways are tried with the last one
    ours=(--pipeshard --pipeshard-vram 60G)
    PEAK=off
    IFS=';' read -ra sets <<< "${FITS_TESTS:--p 0 -n 128 -r 4 -ub 512;-p 32,512,2048,4096 -n 128 -r 2 -b 4096 -ub 4096}"
    for set in "${sets[@]}"; do
        read -ra tests <<< "$set"
        common=(-m "$models/${FITS_MODEL:-30b}.gguf" "${tests[@]}")
        for round in $(seq "${ROUNDS:-2}"); do
            for side in ${SIDES:-stock pipeshard}; do
                way=(-ngl 99); [ "$side" = pipeshard ] && way=("${ours[@]}" --pipeshard-report "$OUT/fits.json")
                bench "$round $side, $set" "${common[@]}" "${way[@]}"
            done
        done
    done
    # what is not pipeshard's own is tried on both sides
    for way in ${FITS_WAYS-GGML_CUDA_DISABLE_FUSION=1 GGML_CUDA_DISABLE_GRAPHS=1 PIPESHARD_DEBUG_CHUNK_BYTES=64G \
        PIPESHARD_DEBUG_STOCK_HAND_OVER=1 PIPESHARD_PAGE_LOCK=off}; do
        export "${way?}"
        [[ $way == PIPESHARD_* ]] || bench "stock, $way" "${common[@]}" -ngl 99
        bench "pipeshard, $way" "${common[@]}" "${ours[@]}"
        unset "${way%%=*}"
    done
    [ -n "${FITS_WAYS-traced}" ] && bench "pipeshard, traced" "${common[@]}" "${ours[@]}" --pipeshard-trace "$OUT/fits.trace.json"
fi

if [[ $what == *kernels* ]]; then
    # stock and pipeshard kernel by kernel (pack.sh with CUPTI brings the recorder): KERNELS_SHOW=tokens, what the last tokens of
    # each set of tests spent on the device; KERNELS_SHOW=link, what the copies of its last prompts waited for
    [ "${KERNELS_MODEL:-30b}" = 8b ] && synth 8b llama3-8b --type f16 || synth 30b qwen3-30b-a3b --type q4_0
    PEAK=off
    IFS=';' read -ra sets <<< "${KERNELS_TESTS:--p 0 -n 128 -r 3 -b 4096 -ub 4096;-p 4096 -n 128 -r 3 -b 4096 -ub 4096}"
    recorded=()
    for set in "${sets[@]}"; do
        read -ra tests <<< "$set"
        for side in ${SIDES:-stock pipeshard}; do
            way=(-ngl 99); [ $side = pipeshard ] && way=(--pipeshard --pipeshard-vram "${KERNELS_VRAM:-60G}")
            recorded+=("$models/kernels.${#recorded[@]}")
            export CUDA_INJECTION64_PATH="$bin/libkernels.so" KERNELS_OUT="${recorded[-1]}"
            bench "recorded $side, $set" -m "$models/${KERNELS_MODEL:-30b}.gguf" "${tests[@]}" "${way[@]}"
            unset CUDA_INJECTION64_PATH KERNELS_OUT
        done
    done
    python3 kernels.py "${KERNELS_SHOW:-tokens}" "${recorded[@]}" > "$OUT/kernels.txt" 2>&1
    rm -f "${recorded[@]}"
    cat "$OUT/kernels.txt"
fi

if [[ $what == *memory* ]]; then
    # how much memory NVML and the driver say is in use, whenever that changes, beside pipeshard's messages; its books are in the report
    [ "${MEMORY_MODEL:-8b}" = 8b ] && synth 8b llama3-8b --type f16 || synth 30b qwen3-30b-a3b --type q4_0
    PEAK=off
    read -ra tests <<< "${MEMORY_TESTS:--p 2048,16256 -n 32 -r 1 -b 16384}"
    for budget in ${MEMORY_BUDGETS:-2G}; do
        export LD_PRELOAD="$bin/libmemory.so"
        bench "memory $budget" -m "$models/${MEMORY_MODEL:-8b}.gguf" "${tests[@]}" --pipeshard --pipeshard-vram "$budget" -v --pipeshard-report "$OUT/memory-$budget.json"
        unset LD_PRELOAD
    done
    grep -aE "^--- bench|^memory |pipeshard: " "$OUT/visit.log" > "$OUT/memory.txt"
fi

if [[ $what == *pages* ]]; then
    # how fast weights are read from small pages, huge ones and a mapped file, and what the link gets beside that
    synth 8b llama3-8b --type f16
    { lscpu --caches; grep . /sys/kernel/mm/transparent_hugepage/{enabled,defrag,shmem_enabled}; } > "$OUT/pages.txt" 2>&1
    [ "${PAGES_GIB:-12}" = 0 ] || "$bin/pages" "$threads" "${PAGES_GIB:-12}" >> "$OUT/pages.txt" 2>&1
    for count in ${PAGES_THREADS:-$threads}; do "$bin/pages" "$count" "$models/8b.gguf" >> "$OUT/pages.txt" 2>&1; done
    tee -a "$OUT/visit.log" < "$OUT/pages.txt"
fi

if [[ $what == *rest* ]]; then
    # how fast the CPU's threads read memory behind a pause, by what they did in it
    "$bin/rest" "$threads" "${REST_MIB:-1024}" | tee "$OUT/rest.txt" | tee -a "$OUT/visit.log"
fi

if [[ $what == *fetch* ]]; then
    # single tokens whose experts both processors compute: the same bits whatever the delays, near those of the device alone
    synth tiny-qwen3moe tiny-qwen3moe
    for fetched in 0 1 3; do
        export PIPESHARD_DEBUG_FETCHED_EXPERTS=$fetched
        same_bits "fetched $fetched" tiny-qwen3moe "${FETCH_MIB:-30}" experts.fetched --prompt-tokens 1,33 --generate 24
        unset PIPESHARD_DEBUG_FETCHED_EXPERTS
    done
    # without quantisation the two processors differ by rounding alone, and no router changes its mind
    synth tiny-qwen3moe-f16 tiny-qwen3moe --type f16
    for fetched in 0 1 2 3; do
        PIPESHARD_RESERVE=0 PIPESHARD_DEBUG_FETCHED_EXPERTS=$fetched verify "tiny-qwen3moe f16, $fetched experts fetched, against all in VRAM" \
            tiny-qwen3moe-f16 "${FETCH_F16_MIB:-40}M" --reference gpu --tolerance 0.05
    done
    synth 30b qwen3-30b-a3b --type q4_0
    common=(-m "$models/30b.gguf" -p 0 -n "${GENERATE:-64}" -d "${DEPTH:-1024}" -r 2 -b 2048 -ub 512)
    for round in $(seq "${ROUNDS:-2}"); do
        for budget in ${BUDGETS_FETCH:-4G}; do
            for fetched in ${FETCHED:-0 2 3 4 planned}; do
                [ "$fetched" = planned ] || export PIPESHARD_DEBUG_FETCHED_EXPERTS=$fetched
                bench "$round $budget, fetched $fetched" "${common[@]}" --pipeshard --pipeshard-vram "$budget" -v --pipeshard-report "$OUT/report-$budget-$fetched.json"
                unset PIPESHARD_DEBUG_FETCHED_EXPERTS
            done
        done
        bench "$round stock, mapped" "${common[@]}" -ngl 99 -ncmoe "${NCMOE:-40}"
    done
    grep -aE "pipeshard: (planned|ubatches|measuring|nothing)|--- bench" "$OUT/visit.log" > "$OUT/planned.txt"
    tar -C "$OUT" -czf "$OUT/reports.tar.gz" $(cd "$OUT" && ls report-*.json) && rm "$OUT"/report-*.json
fi

if [[ $what == *shared* ]]; then
    # experts of a few tokens that both processors compute: the same bits whatever the delays, near those of the device alone
    synth tiny-qwen3moe tiny-qwen3moe
    synth tiny-qwen3moe-f16 tiny-qwen3moe --type f16
    for fetched in 0 2; do
        export PIPESHARD_DEBUG_FETCHED_EXPERTS=$fetched PIPESHARD_DEBUG_FETCHED_ROWS=16
        same_bits "$fetched shared by a few" tiny-qwen3moe "${FETCH_MIB:-38}" experts.fetched --prompt-tokens 2,5,8,16,33 --generate 2
        PIPESHARD_RESERVE=0 verify "tiny-qwen3moe f16, $fetched shared by a few, against all in VRAM" tiny-qwen3moe-f16 \
            "${FETCH_F16_MIB:-60}M" --prompt-tokens 2,5,8,16 --reference gpu --tolerance 0.2
        unset PIPESHARD_DEBUG_FETCHED_EXPERTS PIPESHARD_DEBUG_FETCHED_ROWS
    done
    # sequences side by side, in turn: as planned; the CPU computes all experts; the device fetches all that were chosen; stock
    synth 30b qwen3-30b-a3b --type q4_0
    for round in $(seq "${ROUNDS:-2}"); do
        for count in ${SEQUENCES:-2 4 8}; do
            for way in planned cpu device stock; do
                given=(--pipeshard --pipeshard-vram "${BUDGET:-8G}" --pipeshard-report "$OUT/shared-$count-$way.json" -v)
                case $way in
                    cpu) export PIPESHARD_DEBUG_FETCHED_ROWS=1 PIPESHARD_DEBUG_EXPERT_ROWS=32 ;;
                    device) export PIPESHARD_DEBUG_FETCHED_ROWS=1 PIPESHARD_DEBUG_EXPERT_ROWS=2 ;;
                    stock) given=(-ngl 99 -ncmoe "${NCMOE:-28}") ;;
                esac
                log timeout 60 "$bin/llama-batched-bench" -m "$models/30b.gguf" -t "$threads" -c $((count * 512)) -b 2048 -ub 512 -npp 256 -ntg "${GENERATE:-32}" \
                    -npl "$count" -pps "${given[@]}"
                unset PIPESHARD_DEBUG_FETCHED_ROWS PIPESHARD_DEBUG_EXPERT_ROWS
                note "$round $count sequences, $way: $(grep -aE '^\| +256 ' "$OUT/visit.log" | tail -n 1 | awk -F'|' '{print $9}') tokens/s"
            done
        done
        for prompt in ${SHORT_PROMPTS:-8 16}; do
            common=(-m "$models/30b.gguf" -p "$prompt" -n 0 -r "${REPEAT:-6}" -b 4096)
            bench "$round pp$prompt planned" "${common[@]}" --pipeshard --pipeshard-vram "${BUDGET:-8G}" -v
            PIPESHARD_DEBUG_FETCHED_ROWS=1 PIPESHARD_DEBUG_EXPERT_ROWS=2 bench "$round pp$prompt device" "${common[@]}" --pipeshard --pipeshard-vram "${BUDGET:-8G}" -v
            bench "$round pp$prompt stock" "${common[@]}" -ub 4096 -lm none -ngl 99 -ncmoe "${NCMOE:-28}"
        done
    done
    grep -aE "pipeshard: (planned|ubatches|measuring|nothing)|--- bench|batched-bench" "$OUT/visit.log" > "$OUT/planned.txt"
    tar -C "$OUT" -czf "$OUT/shared.tar.gz" $(cd "$OUT" && ls shared-*.json) && rm "$OUT"/shared-*.json
fi

if [[ $what == *kv* ]]; then
    # KV cache that the budget has no room for: the same bits whatever the delays, while batches attend to them on the device
    synth tiny-llama tiny-llama
    synth tiny-qwen3moe tiny-qwen3moe
    for model in tiny-llama tiny-qwen3moe; do
        for mib in ${KV_MIB:-45 60}; do
            same_bits "host kv $model" "$model" "$mib" attentions_over_host_kv --prompt-tokens 1,40,600 --generate 4 --ctx 8192
        done
    done
fi

if [[ $what == *long* ]]; then
    # contexts whose KV cache is larger than the budget; LONG: budget, model, prompt
    for long in ${LONG:-4G,30b,65408 2G,8b,16256}; do
        IFS=, read -r budget model prompt <<< "$long"
        [ "$model" = 8b ] && synth 8b llama3-8b --type f16 || synth 30b qwen3-30b-a3b --type q4_0
        common=(-m "$models/$model.gguf" -b 4096 -r 1 -v --pipeshard --pipeshard-vram "$budget")
        bench "$model $budget, prompt of $prompt" "${common[@]}" --no-warmup -p "$prompt" -n 0 --pipeshard-report "$OUT/long-$model-$budget.json"
        bench "$model $budget, behind $prompt" "${common[@]}" -p 0 -n "${GENERATE:-16}" -d "$prompt"
    done
fi

if [[ $what == *speed* ]]; then
    synth 8b llama3-8b --type f16
    synth 30b qwen3-30b-a3b --type q4_0
    free=$(nvidia-smi --query-gpu=memory.free --format=csv,noheader,nounits | head -n 1)
    # what a process holds that only opens the device: inside stock's target, outside pipeshard's budget
    context=${CONTEXT_MIB:-527}
    for gib in ${GIBS:-4 8}; do
        for model in 8b 30b; do
            common=(-m "$models/$model.gguf" -p 32 -p 512 -p 2048 -n 32 -r "${REPEAT:-3}" -b 2048 -ub 2048)
            fit=(-fitt $((free - gib * 1024)) -fitc 4096)
            [ -n "${SKIP_MMAP:-}" ] || bench "$model ${gib}G stock --fit, mmap" "${common[@]}" "${fit[@]}"
            bench "$model ${gib}G stock --fit, page-locked" "${common[@]}" "${fit[@]}" -lm none
            bench "$model ${gib}G pipeshard" "${common[@]}" --pipeshard --pipeshard-vram $((gib * 1024 - context))M \
                --pipeshard-report "$OUT/report-$model-${gib}g.json"
        done
    done
    [ -n "${SKIP_ALL:-}" ] && what=""
    [[ $what == *speed* ]] &&
    for model in 8b 30b; do
        bench "$model all in VRAM, stock" -m "$models/$model.gguf" -p 512 -p 2048 -n 32 -r 2 -b 2048 -ub 2048 -ngl 99
        bench "$model all in VRAM, pipeshard 60G" -m "$models/$model.gguf" -p 512 -p 2048 -n 32 -r 2 -b 2048 -ub 2048 --pipeshard --pipeshard-vram 60G --pipeshard-report "$OUT/report-$model-all.json"
    done
fi

if [[ $what == *matrix* ]]; then
    echo "--- matrix" >> "$OUT/visit.log"
    timeout "${LIMIT:-540}" "$bin/pipeshard-lab" matrix --device gpu --models "$models" --quick --json "$OUT/matrix.json" 2>&1 | tee -a "$OUT/visit.log"
    note "matrix: exit ${PIPESTATUS[0]}"
fi

if [[ $what == *bench* ]]; then
    results=${BENCH_DIR:-/dev/shm/pipeshard-bench}
    # a table of what there is, before the machine's own time limit
    [[ ${BENCH_ARGS---quick} == *--quick* ]] || MINUTES=${MINUTES:-9}
    # shellcheck disable=SC2086 # arguments are words
    timeout "${LIMIT:-590}" "$bin/pipeshard-lab" grids ${BENCH_ARGS---quick} ${MINUTES:+--minutes "$MINUTES"} --threads "$threads" \
        --models-dir "$models" --out "$results" > "$OUT/bench.out" 2> >(tee -a "$OUT/visit.log" >&2)
    code=$?
    cat "$OUT/bench.out" | tee -a "$OUT/visit.log"
    rm -f "$OUT/bench.out"
    note "bench: exit $code, results in $results"
    # few files come back from such a machine: the tables apart, all the rest in one
    for file in tables.txt summary.json placements.csv; do [ -s "$results/$file" ] && cp "$results/$file" "$OUT/bench-$file"; done
    tar -C "$results" -czf "$OUT/bench.tar.gz" .
fi

# shellcheck source=builds.sh
[[ $what != *builds* && $what != *neighbours* ]] || source builds.sh

# shellcheck source=rows.sh
[[ $what != *rows* && $what != *cache* ]] || source rows.sh
if [[ " $what " == *" host "* ]]; then
    synth 8b llama3-8b --type f16
    HOST_CACHE=$HOME/host-cache timeout 500 "$bin/host/host" "$models/8b.gguf" ${HOST_SIZES:-8192 4096} "${HOST_CHANGES:-40}" 2> "$OUT/host.log" | tee -a "$OUT/host.txt"
    note "host: $(tail -n 1 "$OUT/host.txt")"
fi
if [[ " $what " == *" hostmemory "* ]]; then
    # the host's allocators and CUDA context
    synth 8b llama3-8b --type f16
    HOST_CACHE=$HOME/host-cache timeout 200 "$bin/host/host_memory" "$models/8b.gguf" ${HOST_SIZES:-8192 4096} 2>> "$OUT/host.log" | tee -a "$OUT/hostmemory.txt"
    note "hostmemory: $(tail -n 1 "$OUT/hostmemory.txt")"
fi
if [[ $what == *hosttps* ]]; then
    # the same model, context and budget in the library for hosts, and in the plug-in set, whose CPU backend uses OpenMP
    synth 8b llama3-8b --type f16
    for round in 1 2 3; do
        for gib in 8 4; do
            HOST_SPEED=1 HOST_CONTEXT=4608 HOST_CACHE=$HOME/host-cache timeout 100 "$bin/host/host" "$models/8b.gguf" $((gib * 1024)) 1024 1 2>> "$OUT/host.log" > "$OUT/speed.txt"
            note "library, $gib GiB: $(grep -oE '[0-9.]+ tokens/s|prompt: .*' "$OUT/speed.txt" | tr '\n' ' ')"
            timeout 100 "$bin/llama-completion" -m "$models/8b.gguf" --pipeshard-vram ${gib}G -c 4608 -b 2048 -n 48 --temp 0 --ignore-eos -no-cnv -t "$threads" -p "Once upon a time" > /dev/null 2> "$OUT/speed.log"
            note "llama-completion, $gib GiB: $(grep -aE 'eval time' "$OUT/speed.log" | grep -oE '[0-9.]+ tokens per second' | tail -n 1)"
        done
    done
fi

if [[ $what == *live* ]]; then
    # llama-server's budget changes while it answers
    synth 8b llama3-8b --type f16
    python3 live.py "$bin/llama-server" "$models/8b.gguf" ${LIVE_SIZES:-8 4} "${LIVE_CHANGES:-60}" 2>&1 | tee -a "$OUT/live.txt"
    note "live: $(tail -n 1 "$OUT/live.txt")"
fi

# shellcheck source=sharing.sh
[[ $what != *sharing* ]] || source sharing.sh

if [[ $what == *encodes* ]]; then
    # shellcheck source=images.sh
    source images.sh
    # shellcheck source=encodes.sh
    source encodes.sh
fi

if [[ $what == *independent* ]]; then
    # shellcheck source=images.sh
    source images.sh
    # shellcheck source=independent.sh
    source independent.sh
fi

if [[ $what == *twoservers* ]]; then
    # two servers that share a budget
    synth 8b llama3-8b --type f16
    synth cosmos-f16 cosmos-reason1-7b --type f16
    export XDG_RUNTIME_DIR=$models
    PIPESHARD_LIBRARY="$bin/libpipeshard.so" timeout 200 python3 share.py "$bin/llama-server" "$models/8b.gguf" "$models/cosmos-f16.gguf" "${SHARE_TOTAL:-12}" 2>&1 | tee "$OUT/share.txt"
fi

if [[ $what == *turns* ]]; then
    # questions about images to llama-server: time to the first token, of pipeshard and of stock within the same memory
    synth cosmos-f16 cosmos-reason1-7b --type "${TURNS_TYPE:-f16}"
    synth cosmos-mmproj cosmos-reason1-7b-mmproj
    PIPESHARD_LIBRARY="$bin/libpipeshard.so" python3 turns.py "$bin/llama-server" "$models/cosmos-f16.gguf" "$models/cosmos-mmproj.gguf" "$OUT/turns.jsonl" \
        --threads $((threads / 2)) ${TURNS_ARGS:-} 2>&1 | tee "$OUT/turns.txt"
    # what was predicted for them, by the profile that the servers measured
    for report in "$OUT"/turns.jsonl-*.report.json; do
        [[ $report =~ turns.jsonl-([0-9]+x[0-9]+)-([0-9.]+).report.json ]] || continue
        "$bin/pipeshard" plan "$models/cosmos-f16.gguf" --mmproj "$models/cosmos-mmproj.gguf" --image "${BASH_REMATCH[1]}" --vram "${BASH_REMATCH[2]}G" \
            -c 8192 -t $((threads / 2)) > "$OUT/predicted-${BASH_REMATCH[1]}-${BASH_REMATCH[2]}.txt" 2>&1
        note "predicted ${BASH_REMATCH[1]}, ${BASH_REMATCH[2]} GiB: $(grep -iE 'encode|first token' "$OUT/predicted-${BASH_REMATCH[1]}-${BASH_REMATCH[2]}.txt" | tr -s ' ' | paste -sd ';')"
    done
    cp "$HOME"/.cache/pipeshard/*.json "$XDG_CACHE_HOME"/pipeshard/*.json "$OUT" 2>/dev/null
fi

# shellcheck source=profiles.sh
[[ $what != *givenplans* ]] || source profiles.sh

if [[ $what == *vision* ]]; then
    # shellcheck source=images.sh
    source images.sh
    # shellcheck source=vision.sh
    source vision.sh
fi

if [[ $what == *profile* ]]; then
    "$PWD/profile.sh" "$bin" "$OUT" "$models" "$threads" 2>&1 | tee -a "$OUT/visit.log"
    note "profile: exit ${PIPESTATUS[0]}, $(grep -c . "$OUT/profile-times.txt" 2>/dev/null || echo 0) runs timed"
fi

echo; echo "SUMMARY"; printf '%s\n' "${summary[@]}" | tee "$OUT/summary.txt"
