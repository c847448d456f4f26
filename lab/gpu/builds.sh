# Sourced by visit.sh. Two builds of pipeshard in turn, and one beside other programs on the same GPU.
# shellcheck shell=bash disable=SC2154 # `what`, `bin`, `models`, `OUT` and the functions are visit.sh's

# Runs what follows with the tools of a build: `new` is ./bin, `old` is ./bin-old.
with_build() { # BUILD COMMAND...
    local build=$1 given_bin=$bin given_path=$LD_LIBRARY_PATH
    shift
    [ "$build" = old ] && bin=$PWD/bin-old && export LD_LIBRARY_PATH="$bin:$given_path"
    "$@"
    bin=$given_bin LD_LIBRARY_PATH=$given_path
}

if [[ $what == *builds* ]]; then
    # prompts and generation, a dense model and a mixture of experts, and everything in VRAM beside stock
    synth 8b llama3-8b --type f16
    synth 30b qwen3-30b-a3b --type q4_0
    PEAK=off
    common=(-p 2048 -n 64 -r "${REPEAT:-2}" -b 2048)
    for round in $(seq "${ROUNDS:-3}"); do
        for model in ${BUILDS_MODELS:-8b 30b}; do
            for build in ${BUILDS:-old new}; do
                with_build "$build" bench "$round $build $model ${BUILDS_VRAM:-4G}" -m "$models/$model.gguf" "${common[@]}" \
                    --pipeshard --pipeshard-vram "${BUILDS_VRAM:-4G}" --pipeshard-report "$OUT/builds-$build-$model.json"
            done
        done
        bench "$round new 30b 60G, everything fits" -m "$models/30b.gguf" "${common[@]}" -ub 2048 --pipeshard --pipeshard-vram 60G
        bench "$round stock 30b, everything fits" -m "$models/30b.gguf" "${common[@]}" -ub 2048 -ngl 99
    done
fi

if [[ $what == *neighbours* ]]; then
    # a program that takes device memory for a while, and two processes with a budget each: the same answer, within the budget, and
    # as much resident as without others
    synth 8b llama3-8b --type f16
    alone() { # NAME PROMPT_SEED : one process, its text and its report
        log timeout 120 "$bin/llama-completion" -m "$models/8b.gguf" -t $((threads / 2)) -p "Once upon a time there was $2" -n "${GENERATE:-96}" -c 2048 \
            -no-cnv --temp 0 --ignore-eos --simple-io -v --pipeshard --pipeshard-vram 4G --pipeshard-report "$OUT/neighbour-$1.json" --log-file "$OUT/neighbour-$1.log"
    }
    shown() { # NAME
        note "$1: $(python3 - "$OUT/neighbour-$1.json" <<'PY'
import json, sys
r = json.load(open(sys.argv[1]))
print("budget", r["budget"] >> 20, "peak", r["peak"]["total"] >> 20, "resident", r["peak"]["resident"] >> 20, "held resident", r["held"]["resident"] >> 20,
      "other", r["peak"]["other"] >> 20, "replans", r["replans"], "errors", r["errors"])
PY
)"
        grep -ah "the driver does not say" "$OUT/neighbour-$1.log" | sort -u | tee -a "$OUT/visit.log"
    }
    alone one a; shown one
    ( sleep "${NEIGHBOUR_AFTER:-6}"; bench "the neighbour" -m "$models/8b.gguf" -p 512 -n 16 -r 1 -ngl 99 > /dev/null ) &
    alone beside-a-game a; wait; shown beside-a-game
    alone child-a a & alone child-b b; wait
    shown child-a; shown child-b
fi
