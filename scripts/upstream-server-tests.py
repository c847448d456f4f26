#!/usr/bin/env python3
"""Runs llama.cpp's own tests of llama-server twice, stock and with pipeshard, and compares.

    upstream-server-tests.py [--quick] [--tools DIR] [--work DIR] [--files unit/FILE...] [PYTEST ARGUMENT...]

The tests come from the pinned archive, and are not changed. A model that is here already, SmolLM2 cut to six layers, takes
the place of those that they would download: so some fail in stock as well, which is listed. pipeshard is forced on through
the environment, on the simulated GPU, with a budget that the model does not fit in. The exit code is 1 when a test fails
only with pipeshard, or when nothing was compared.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import fetch

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = ROOT / "tests/server/upstream"
TESTS = "tools/server/tests"
KEPT_LAYERS, LAYERS = 6, 30
# 26 MiB of output head and six layers of 3 MiB are in the file: half of it fits.
PIPESHARD = {"LLAMA_ARG_PIPESHARD": "1", "LLAMA_ARG_PIPESHARD_SIM": "vram=1G", "LLAMA_ARG_PIPESHARD_VRAM": "20M"}
# The plain kernels of the CPU, which the simulated GPU computes with as well.
STOCK = {"LLAMA_ARG_REPACK": "0"}
# Half a minute.
QUICK = ["test_basic.py", "test_tokenize.py", "test_metrics.py", "test_ctx_shift.py", "test_ignore_eos.py", "test_sleep.py"]


# What pipeshard does otherwise, and why.
ON_PURPOSE = {
    "unit/test_sleep.py::test_server_sleep_read_only_endpoints":
        "/metrics of a server that sleeps shows what is held now: the memory of weights was given back",
}


def extract(work: Path) -> None:
    """Upstream's tests as they came, and the chat templates that they name."""
    archive = fetch.download("llama.cpp")
    requirements = ROOT / "vendor/llama.cpp.txt"
    prefix = fetch.field(requirements.read_text(), "source tree:", requirements) + "/"
    wanted = ("tools/server/tests/", "models/templates/")
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            name = member.name.removeprefix(prefix)
            if member.isfile() and name.startswith(wanted) and ".." not in Path(name).parts:
                target = work / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())


def small_model(tools: Path, work: Path) -> Path:
    model = work / "SmolLM2-6-layers.gguf"
    dropped = ",".join(str(layer) for layer in range(KEPT_LAYERS, LAYERS))
    command = [tools / "llama-quantize", "--prune-layers", dropped, fetch.demo_model(), model, "COPY", "1"]
    made = subprocess.run(command, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if made.returncode != 0 or not model.exists():
        sys.exit(f"llama-quantize could not make the small model:\n{made.stdout}")
    return model


def clean_environment() -> dict:
    return {n: v for n, v in os.environ.items() if not n.startswith(("LLAMA_", "GGML_", "PIPESHARD_DEBUG"))}


def start(name: str, variables: dict, port: int, arguments, tools: Path, model: Path, work: Path):
    """Starts pytest; returns the process and where its notes will be."""
    folder = work / name
    tests = folder / TESTS
    notes = folder / "notes.json"
    notes.unlink(missing_ok=True)
    packages = fetch.server_tests()
    library = os.environ.get("PIPESHARD_LIBRARY", tools / "libpipeshard.so")
    environment = clean_environment() | variables | {
        "PYTHONPATH": f"{packages}:{PLUGIN}",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PIPESHARD_LIBRARY": str(library),
        "PIPESHARD_PLAN_CACHE": "off",
        "LLAMA_SERVER_BIN_PATH": str(tools / "llama-server"),
        # a folder that stays empty: nothing is downloaded
        "LLAMA_CACHE": str(folder / "cache"),
        "LLAMA_ARG_OFFLINE": "1",
        "GGML_NO_BACKTRACE": "1",
        "PORT": str(port),
        "UPSTREAM_MODEL": str(model),
        "UPSTREAM_NOTES": str(notes),
    }
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "local_models", "-p", "no:cacheprovider"]
    command += ["-m", "not slow", f"--basetemp={folder / 'tmp'}", *arguments]
    log = (folder / "log").open("w")
    process = subprocess.Popen(command, cwd=tests, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    return process, notes


def run(arguments, tools: Path, model: Path, work: Path) -> tuple:
    """Notes of the stock run and of that with pipeshard, which run beside each other, and whether they were interrupted."""
    # the ports of the two must not meet
    stock = start("stock", STOCK, 18080, arguments, tools, model, work)
    ours = start("pipeshard", PIPESHARD, 28080, arguments, tools, model, work)
    made, ended = [], False
    for process, notes in (stock, ours):
        try:
            process.wait()
        except KeyboardInterrupt:
            # pytest was interrupted as well, and writes its notes
            ended = True
            process.wait()
        if not notes.exists():
            sys.exit(f"pytest did not run:\n{(notes.parent / 'log').read_text()[-4000:]}")
        made.append(json.loads(notes.read_text()))
    if ended:
        both = set(made[0]["tests"]) & set(made[1]["tests"])
        for notes in made:
            notes["tests"] = {name: test for name, test in notes["tests"].items() if name in both and "answers" in test}
    return (*made, ended)


def run_files(files, arguments, tools: Path, model: Path, work: Path) -> tuple:
    """The same, file by file, so that a run that is ended early has something to tell."""
    stock, ours = ({"tests": {}, "servers": 0, "with_pipeshard": 0} for _ in range(2))
    for file in files:
        print(f"{file} ...", file=sys.stderr, flush=True)
        *parts, ended = run([file, *arguments], tools, model, work)
        for total, part in zip((stock, ours), parts):
            total["tests"].update(part["tests"])
            total["servers"] += part["servers"]
            total["with_pipeshard"] += part["with_pipeshard"]
        if ended:
            print("ended early: what follows is a part", file=sys.stderr)
            break
    return stock, ours


def kind(stock: dict, ours: dict) -> str:
    if "skipped" in (stock["outcome"], ours["outcome"]):
        return "skipped" if stock["outcome"] == ours["outcome"] else "differs"
    if stock["outcome"] == ours["outcome"]:
        return "passes" if stock["outcome"] == "passed" else "fails in both"
    return "only pipeshard fails" if ours["outcome"] == "failed" else "only stock fails"


MISSING = {"outcome": "failed", "why": "did not run"}


def compare(stock: dict, ours: dict) -> dict:
    names = sorted(set(stock["tests"]) | set(ours["tests"]))
    return {n: kind(stock["tests"].get(n, MISSING), ours["tests"].get(n, MISSING)) for n in names}


def table(kinds: dict, markdown: bool) -> str:
    columns = ["passes", "fails in both", "skipped", "only stock fails", "only pipeshard fails"]
    rows = {}
    for name, found in kinds.items():
        file = re.sub(r"^unit/|\.py$", "", name.split("::")[0])
        rows.setdefault(file, Counter())[found] += 1
    rows["all"] = sum(rows.values(), Counter())
    width = max(len(name) for name in rows) + 2
    heads = ["pass", "both fail", "skipped", "only stock fails", "only pipeshard fails"]
    if markdown:
        lines = ["| file | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
        return "\n".join(lines + [f"| {f} | " + " | ".join(str(c[k]) for k in columns) + " |" for f, c in rows.items()])
    lines = ["file".ljust(width) + "  ".join(heads)]
    for file, counts in rows.items():
        lines.append(file.ljust(width) + "  ".join(str(counts[k]).rjust(len(h)) for k, h in zip(columns, heads)))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few files only")
    parser.add_argument("--tools", type=Path, default=os.environ.get("PIPESHARD_TEST_TOOLS", ROOT / "target/release"))
    parser.add_argument("--work", type=Path, default=ROOT / "target/upstream-server-tests")
    parser.add_argument("--files", nargs="*", default=[], metavar="unit/FILE", help="these files only")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options, arguments = parser.parse_known_args()
    work, tools = options.work.resolve(), Path(options.tools).resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    model = small_model(tools, work)
    for name in ("stock", "pipeshard"):
        extract(work / name)
    folder = work / "stock" / TESTS
    files = [f"unit/{file}" for file in QUICK] if options.quick else options.files
    files = files or sorted(str(path.relative_to(folder)) for path in folder.glob("unit/test_*.py"))

    stock, ours = run_files(files, arguments, tools, model, work)
    kinds = compare(stock, ours)
    doubtful = [name for name, found in kinds.items() if found in ("only pipeshard fails", "only stock fails", "differs")]
    if doubtful:
        print("Run again, for these did not do the same twice: " + ", ".join(doubtful))
        again = run(doubtful, tools, model, work)
        kinds.update(compare(*again[:2]))
        for first, second in zip((stock, ours), again):
            first["tests"].update(second["tests"])

    print(table(kinds, options.markdown))
    for wanted, title in [("fails in both", "Upstream fails too"), ("skipped", "Skipped")]:
        reasons = Counter(ours["tests"][name]["why"] for name, found in kinds.items() if found == wanted)
        print(f"\n{title}:")
        for name, found in kinds.items():
            if wanted == "fails in both" and found == wanted:
                print(f"  {name}: {stock['tests'][name]['why'][:160]}")
        if wanted == "skipped":
            for why, count in reasons.most_common():
                print(f"  {count} {why}")
    answered = [n for n in kinds if any(stock["tests"].get(n, {}).get("answers", []))]
    same = [n for n in answered if stock["tests"][n]["answers"] == ours["tests"].get(n, {}).get("answers")]
    print(f"\nOf {len(answered)} tests in which the model said something, {len(same)} heard the same, bit by bit.")
    print("Others: " + (", ".join(n for n in answered if n not in same) or "none"))
    print(f"pipeshard was on in {ours['with_pipeshard']} of {ours['servers']} servers, in stock in {stock['with_pipeshard']}.")

    bad = [name for name, found in kinds.items() if found in ("only pipeshard fails", "differs")]
    for name in [name for name in bad if name in ON_PURPOSE]:
        bad.remove(name)
        print(f"\nDiffers on purpose: {name}: {ON_PURPOSE[name]}")
    for name in bad:
        print(f"\nFAILS ONLY WITH PIPESHARD: {name}\n  {ours['tests'].get(name, MISSING)['why']}")
    if not any(found == "passes" for found in kinds.values()) or not ours["with_pipeshard"] or stock["with_pipeshard"]:
        print("\nNothing was compared: no test passed, or pipeshard was not on where it should have been")
        return 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
