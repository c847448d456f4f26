#!/usr/bin/env python3
"""Changes llama-server's budget while it answers: `live.py SERVER MODEL LARGE SMALL CHANGES`, sizes in GiB.

Prints, for changes between two tokens, in a streamed prompt, and while nothing is computed: how long a request to shrink and one to
grow took, what the driver said of the process behind each, and the tokens per second before and after.
"""
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

PORT = 18099
GIB = 1 << 30


def ask(path, body=None, timeout=300):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


def used_by_process(pid):
    """MiB by NVML; none where it does not know the process."""
    out = subprocess.run(["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"],
                         capture_output=True, text=True).stdout
    figures = [int(line.split(",")[1]) for line in out.splitlines() if line.split(",")[0].strip() == str(pid)]
    return figures[0] if figures else None


def card():
    out = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True, text=True).stdout
    return int(out.split()[0])


def completion(tokens, prompt="Once upon a time", **more):
    return ask("/completion", {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False, **more})


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))]


def changes(count, large, small, what, over):
    """Shrinks and grows in turn until `count` are made or `over` says so."""
    rows = {"shrink": [], "grow": []}
    worst = 0
    at = 0
    while at < count and not over():
        size = small if at % 2 == 0 else large
        begun = time.perf_counter()
        status, now = ask("/pipeshard/budget", {"size": size})
        took = (time.perf_counter() - begun) * 1e3
        seen = card()
        assert status == 200, now
        worst = max(worst, now["held_total"] - size)
        rows["shrink" if at % 2 == 0 else "grow"].append((took, now["waited_ms"], now["moved_ms"], now["by_driver"] >> 20, seen))
        at += 1
        time.sleep(random.uniform(0.05, 0.4))
    for name, made in rows.items():
        if not made:
            continue
        took = [row[0] for row in made]
        print(f"{what}, {name}: {len(made)} changes; answered in {statistics.median(took):.0f} ms (most {max(took):.0f}, 99th {percentile(took, 0.99):.0f}); "
              f"waited {statistics.median(r[1] for r in made):.0f} (most {max(r[1] for r in made):.0f}); moved {statistics.median(r[2] for r in made):.1f} "
              f"(most {max(r[2] for r in made):.1f}); by driver {min(r[3] for r in made)} to {max(r[3] for r in made)} MiB; card {min(r[4] for r in made)} to "
              f"{max(r[4] for r in made)} MiB", flush=True)
    assert worst <= 0, worst


def main():
    server, model, large, small, count = sys.argv[1], sys.argv[2], *(float(v) for v in sys.argv[3:5]), int(sys.argv[5])
    large, small = int(large * GIB), int(small * GIB)
    before = card()
    child = subprocess.Popen(
        [server, "-m", model, "-c", "8192", "-np", "1", "--port", str(PORT), "--pipeshard-vram", str(large), "--pipeshard-control", "--metrics"],
        stdout=subprocess.DEVNULL, stderr=open(os.path.join(os.environ.get("OUT", "."), "live.log"), "w"))
    try:
        while True:
            try:
                if ask("/health")[0] == 200:
                    break
            except OSError:
                pass
            assert child.poll() is None, "the server ended"
            time.sleep(0.2)
        random.seed(1)
        # numbers of tokens: a synthetic vocabulary has no words
        words = [random.randrange(100, 500) for _ in range(int(os.environ.get("LIVE_PROMPT", "4000")))]
        completion(8)
        print("limits", json.dumps(ask("/pipeshard")[1]), "card before the server", before, "MiB", flush=True)
        speed = lambda answer: answer[1]["timings"]["predicted_per_second"]
        prompt = lambda answer: (answer[1]["timings"]["prompt_n"], round(answer[1]["timings"]["prompt_ms"]))
        first = completion(48)
        print(f"budget {large / GIB:g} GiB: {speed(first):.2f} tokens/s; prompt {prompt(completion(1, words))} tokens, ms", flush=True)
        ask("/pipeshard/budget", {"size": small})
        print(f"budget {small / GIB:g} GiB: {speed(completion(48)):.2f} tokens/s; prompt {prompt(completion(1, words))} tokens, ms", flush=True)
        ask("/pipeshard/budget", {"size": large})
        completion(2)
        changes(min(count, 20), large, small, "idle", lambda: False)
        for name, request in (("between tokens", lambda: completion(200)), ("in prompts", lambda: completion(1, words))):
            done = threading.Event()
            answers = []
            def work():
                while not done.is_set():
                    answers.append(request())
            worker = threading.Thread(target=work)
            worker.start()
            try:
                changes(count, large, small, name, lambda: False)
            finally:
                done.set()
                worker.join()
            assert all(status == 200 for status, _ in answers), answers
        ask("/pipeshard/budget", {"size": large})
        completion(8)
        again = completion(48)
        print(f"budget {large / GIB:g} GiB again: {speed(again):.2f} tokens/s; the same text as at first: {again[1]['content'] == first[1]['content']}", flush=True)
        status, least = ask("/pipeshard/budget", {"size": "minimum"})
        print("minimum", status, json.dumps(least), "card", card(), "MiB, process", used_by_process(child.pid), flush=True)
        begun = time.perf_counter()
        ask("/pipeshard/budget", {"size": large})
        woken = completion(1)
        print(f"from the minimum back to {large / GIB:g} GiB and one token: {(time.perf_counter() - begun) * 1e3:.0f} ms {woken[0]}", flush=True)
        metrics = urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics").read().decode()
        print("\n".join(line for line in metrics.splitlines() if line.startswith(("pipeshard_recarvings_total", "pipeshard_budget_changes_total", "pipeshard_errors_total", "pipeshard_peak_total"))))
    finally:
        child.terminate()
        child.wait()


main()
