#!/usr/bin/env python3
"""Writes docs/notes/constants.md: how much plans depend on each figure of a profile and on each number in constants.rs.

Figures of a profile are changed at run time. Constants are changed in a copy of the crates, which is built again for each: ten
minutes on two cores.
"""
import pathlib
import re
import shutil
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONSTANTS = "crates/pipeshard-plan/src/constants.rs"
# what a factor of two means something for, with the module that it stands in
NAMES = [
    "SMALL_OPERATIONS", "TOKEN_WEIGHT", "USUAL_PASS", "CONVERSATION_WEIGHT", "GAIN_ON_USUAL", "BATCH_GAIN", "HARMLESS", "GENERATED",
    "LONGEST_PROMPT", "REPEATED",
]
HEAD = """\
# What plans depend on

Every number that the planner assumes stands in
[constants.rs](../../crates/pipeshard-plan/src/constants.rs) and
[host.rs](../../crates/pipeshard-plan/src/profile/host.rs), with its unit and its source. These tables say which of them
matter. `scripts/sensitivity.py` writes this page.

The points are two models (8B f16 and 30B-A3B q4_0), two machines (`laptop-12g`, `desktop-16g`), contexts of 4K, 16K and
64K and budgets of 3, 5 and 9 GiB: {points} in all. They are predictions: nothing here was run.

## Figures of a profile

A plan is made with one figure doubled, then halved, and priced with the true one. *Lost* is how much worse its score is
at the worst point (the score is the cube root of the time to the first token times the square of the time per token).

{figures}

## Constants

Plans made with one constant doubled, then halved, against those with the true one: how many differ, and by how much the
predicted time to the first token and the tokens per second change at most.

| constant | doubled | TTFT, tokens/s | halved | TTFT, tokens/s |
|---|---:|---:|---:|---:|
{constants}

Grids of values to try (`tried`) and the limits on what runs teach (`runs`) are left out, but for `REPEATED`: they say
how long the search takes and what it believes, not what is better.
"""


def built(root):
    subprocess.run(
        ["cargo", "build", "-q", "--release", "-p", "pipeshard-plan", "--example", "sensitivity", "--features", "test-support"],
        cwd=root, check=True)
    return root / "target/release/examples/sensitivity"


def plans(tool):
    lines = subprocess.run([tool, "--plans"], check=True, capture_output=True, text=True).stdout.splitlines()
    found = {}
    for line in lines:
        words = line.split()
        found[" ".join(words[:-3])] = (words[-3], float(words[-2]), float(words[-1]))
    return found


def changed(text, name, factor):
    """The source with a constant times the factor; whole numbers stay whole."""
    def replace(match):
        value = float(match.group(2).replace("_", "")) * factor
        whole = re.fullmatch(r"u\d+|usize", match.group(1).split(":")[1].split("=")[0].strip())
        return match.group(1) + (str(int(value)) if whole else repr(value)) + ";"
    new, count = re.subn(rf"(pub const {name}: \w+ = )([\d_.e+-]+);", replace, text)
    if count != 1:
        raise SystemExit(f"{CONSTANTS} has {count} constants {name}")
    return new


def difference(true, other):
    both = [(true[k], other[k]) for k in true if k in other]
    differ = [pair for pair in both if pair[0][0] != pair[1][0]]
    most = lambda at: max((abs(b[at] / a[at] - 1) for a, b in both), default=0.0)
    return f"{len(differ)}", f"{most(1):.1%}, {most(2):.1%}"


def main():
    tool = built(ROOT)
    true = plans(tool)
    figures = subprocess.run([tool], check=True, capture_output=True, text=True).stdout.strip()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("target", ".git", ".gpu*"))
        source = copy / CONSTANTS
        text = source.read_text()
        for name in NAMES:
            row = [f"`{name}`"]
            for factor in (2.0, 0.5):
                source.write_text(changed(text, name, factor))
                row += difference(true, plans(built(copy)))
            print(row, flush=True)
            rows.append("| " + " | ".join(row) + " |")
    page = HEAD.format(points=len(true), figures=figures, constants="\n".join(rows))
    (ROOT / "docs/notes/constants.md").write_text(page)


if __name__ == "__main__":
    main()
