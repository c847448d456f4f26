#!/usr/bin/env python3
"""Two llama-servers that share a budget: `share.py SERVER MODEL MODEL TOTAL_GIB [CONTEXT_MIB]`.

Each answers in turn and both at once. Printed: budgets and tokens per second at each step, how long until a server that computes has
what the other does not use, and what NVML saw at most, less two bare CUDA contexts, which must not be above the total."""
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request

GIB = 1 << 30
PORTS = (18096, 18097)


def ask(port, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def card():
    out = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True, text=True).stdout
    return int(out.split()[0])


def start(server, model, port, total):
    env = {**os.environ, "PIPESHARD_SHARE": "visit"}
    flags = ["--port", str(port), "-c", "8192", "-np", "1", "--no-webui", "-t", "8", "--pipeshard-vram", f"{total}G", "--pipeshard-control"]
    process = subprocess.Popen([server, "-m", model, *flags], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        if process.poll() is not None:
            sys.exit(f"the server of {model} did not start")
        try:
            ask(port, "/health")
            return process
        except OSError:
            time.sleep(0.1)


def tokens_per_second(port, tokens=32):
    body = {"prompt": "Once upon a time", "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    return ask(port, "/completion", body)["timings"]["predicted_per_second"]


def main():
    server, first, second, total = sys.argv[1:5]
    context = int(sys.argv[5]) if len(sys.argv) > 5 else 527
    before, peak, over = card(), [0, 0], threading.Event()
    servers, contexts = [], [1]

    def sample():
        while not over.is_set():
            at = contexts[0] - 1
            peak[at] = max(peak[at], card() - before)

    sampler = threading.Thread(target=sample)
    sampler.start()

    def step(what):
        budgets = [ask(port, "/pipeshard") for port in PORTS[:len(servers)]]
        sizes = ", ".join(f"{b['budget'] / GIB:.2f} (holds {b['held_total'] / GIB:.2f}, needs {b['minimum'] / GIB:.2f})" for b in budgets)
        print(f"{what}: GiB {sizes}", flush=True)

    try:
        servers.append(start(server, first, PORTS[0], total))
        step(f"first alone, {tokens_per_second(PORTS[0]):.1f} tokens/s")
        contexts[0], began = 2, time.monotonic()
        servers.append(start(server, second, PORTS[1], total))
        step(f"second started in {time.monotonic() - began:.1f} s")
        for which, port in (("second", PORTS[1]), ("first", PORTS[0]), ("second", PORTS[1])):
            began, rates = time.monotonic(), []
            while time.monotonic() - began < 14:
                rates.append(tokens_per_second(port))
            step(f"{which} computes, tokens/s {' '.join(f'{r:.1f}' for r in rates)}")
        rates = {}
        both = [threading.Thread(target=lambda p=p: rates.update({p: [tokens_per_second(p) for _ in range(4)]})) for p in PORTS]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        step("both compute, tokens/s " + " and ".join(" ".join(f"{r:.1f}" for r in rates[p]) for p in PORTS))
        servers[1].kill()
        servers[1].wait()
        began = time.monotonic()
        while ask(PORTS[0], "/pipeshard")["share"]["others"] or ask(PORTS[0], "/pipeshard")["budget"] < float(total) * GIB * 0.98:
            tokens_per_second(PORTS[0], 8)
            if time.monotonic() - began > 20:
                break
        print(f"second was killed; first has its share after {time.monotonic() - began:.1f} s", flush=True)
    finally:
        for process in servers:
            process.kill()
            process.wait()
        over.set()
        sampler.join()
    print(f"NVML's peak, less contexts of {context} MiB: {peak[0] - context} MiB of one, {peak[1] - 2 * context} of both; total {float(total) * 1024:.0f}")


if __name__ == "__main__":
    main()
