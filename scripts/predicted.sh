#!/bin/sh
# Writes docs/predicted.md: what is predicted for three shapes on machines that are not here.
# PIPESHARD names the tool; the models are headers without weights and take no room.
set -eu
cd "$(dirname "$0")/.."
tool=${PIPESHARD:-target/release/pipeshard}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

{
    cat <<'TEXT'
# Predicted: budgets, contexts, machines

**These are predictions, not measurements.** Nobody ran anything: `pipeshard plan --map` priced its plans on machines
that are stated by the data sheets of their parts, less what is known to be lost on the way.
[benchmarks.md](benchmarks.md) has what was measured, and how far predictions were off.

Each cell: seconds to the first token after a prompt of three quarters of the context, tokens per second after it, and what
limits (the prompt, generation). The ubatch is chosen as in a run. *needs 580M* names the smallest budget that works.
`scripts/predicted.sh` wrote this file; [plan.md](plan.md) says how to ask for your own model and machine.
TEXT
    for model in llama3-8b:f16 qwen3-30b-a3b:q4_0 qwen3-32b:q4_K; do
        shape=${model%:*}
        "$tool" synth --shape "$shape" --type "${model#*:}" --header-only "$folder/$shape.gguf" >/dev/null
        echo
        "$tool" plan "$folder/$shape.gguf" --map
    done
} >"$folder/predicted.md"
mv "$folder/predicted.md" docs/predicted.md
