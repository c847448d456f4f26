#!/usr/bin/env bash
# A real model answers under a VRAM budget that it does not fit in. Run by `make demo`, after the build.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=${CARGO_TARGET_DIR:-target}/release
budget=${PIPESHARD_DEMO_VRAM:-}
# long enough to be streamed: from 32 tokens on
prompt=${PIPESHARD_DEMO_PROMPT:-"Paris is the capital of France. Berlin is the capital of Germany. Rome is the capital of Italy. Madrid is the capital of Spain. Lisbon is the capital of Portugal. Athens is the capital of Greece. Tokyo is the capital of"}
report=$bin/demo-report.json
model=$(python3 scripts/fetch.py demo-model)

# Nested quotation would be fragile: arguments are kept in an array.
simulated=()
if gpu=$(nvidia-smi -L 2>/dev/null) && [ -n "$gpu" ] && [ -e "$bin/libggml-cuda.so" ]; then
    echo "Device: ${gpu%%$'\n'*}"
    # kernels' code and libraries alone are larger than this small model: the budget holds them as well
    budget=${budget:-192M}
    export PIPESHARD_RESERVE=${PIPESHARD_RESERVE:-96M}
else
    echo "Device: simulated GPU. No GPU is used: either this machine has none, or this build has no libggml-cuda.so."
    budget=${budget:-40M}
    simulated=(--pipeshard-sim vram=1G)
fi
flags=(--pipeshard --pipeshard-vram "$budget" --pipeshard-report "$report" "${simulated[@]}")
size=$(stat -L -c %s "$model")
echo "Model:  $(basename "$model"), $((size / 1048576)) MiB"
echo "Budget: $budget of VRAM"

echo
echo "The plan (pipeshard plan):"
"$bin/pipeshard" plan "$model" --vram "$budget" --reserve "${PIPESHARD_RESERVE:-0}"

echo
echo "The answer (llama-completion ${flags[*]}):"
rm -f "$report"
"$bin/llama-completion" -m "$model" "${flags[@]}" -p "$prompt" -n 48 --temp 0 -no-cnv </dev/null

echo
if [ ! -s "$report" ]; then
    echo "demo: the run left no report in $report" >&2
    exit 1
fi
echo "The report ($report, without the list of weights that are not resident):"
python3 - "$report" "$size" <<'PYTHON'
import json, sys

report, model = json.load(open(sys.argv[1])), int(sys.argv[2])
peak, budget = report["peak"]["total"], report["budget"]
print(json.dumps({k: v for k, v in report.items() if k not in ("not_resident", "simulated_device")}, indent=2))
mib = lambda size: f"{size / 2**20:.1f} MiB"
if not report["engaged"]:
    sys.exit(f"demo: pipeshard was not engaged: {report['reason']}")
if peak > budget:
    sys.exit(f"demo: the peak of {mib(peak)} is over the budget of {mib(budget)}")
print(f"Engaged: a model of {mib(model)} ran under a budget of {mib(budget)}; the most it took was {mib(peak)}.")
PYTHON
