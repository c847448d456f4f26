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
    echo "Device: simulated GPU (no GPU here, or no libggml-cuda.so in this build)"
    budget=${budget:-40M}
    simulated=(--pipeshard-sim vram=1G)
fi
flags=(--pipeshard-vram "$budget" --pipeshard-report "$report" "${simulated[@]}")
size=$(stat -L -c %s "$model")
echo "Model:  $(basename "$model"), $((size / 1048576)) MiB of weights; budget: $budget of VRAM"
echo
echo "\$ llama-completion -m MODEL --pipeshard-vram $budget ${simulated[*]}"
echo
rm -f "$report"
said=$(mktemp)
trap 'rm -f "$said"' EXIT
"$bin/llama-completion" -m "$model" "${flags[@]}" -p "$prompt" -n 48 --temp 0 -no-cnv </dev/null 2>"$said" | cat -s ||
    { cat "$said" >&2; exit 1; }

# what the run says at its end: what is where, how much device memory, how fast; the device was named above
grep -E '^pipeshard: (engaged|off|device memory|speed|error)' "$said" | sed -E 's/^(pipeshard: engaged on [A-Z0-9]+) \(.*\)\)?:/\1:/' ||
    { cat "$said" >&2; exit 1; }
if [ ! -s "$report" ]; then
    echo "demo: the run left no report in $report" >&2
    exit 1
fi
python3 - "$report" <<'PYTHON'
import json, sys

report = json.load(open(sys.argv[1]))
peak, budget = report["peak"]["total"], report["budget"]
if not report["engaged"]:
    sys.exit(f"demo: pipeshard was not engaged: {report['reason']}")
if peak > budget:
    sys.exit(f"demo: the peak of {peak} bytes is over the budget of {budget}")
PYTHON
echo
echo "Next:"
echo "  $bin/pipeshard plan MODEL --vram 6G     what would live where"
echo "  $bin/llama-server -m MODEL --pipeshard-vram 6G"
echo "  docs/report.md explains $report, all that was counted"
