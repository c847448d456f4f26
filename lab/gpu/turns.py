#!/usr/bin/env python3
"""Times to the first token of requests with an image, of pipeshard and of stock llama.cpp within the same memory.

  turns.py SERVER MODEL MMPROJ OUT [--sizes 868x476 1932x1092] [--budgets 2 4 8] [--seconds 560]

Each row is a llama-server of its own, asked three times with another image each, then twice with as many tokens of text. Stock is held
to a budget by --fit, which counts the encoder, in three ways: mapped weights, page-locked weights with large ubatches, and page-locked
with the encoder on the CPU (--stock). What a row took of the card is NVML's peak less what was in use before and less a bare CUDA context.
OUT gets a JSON object per row."""
import argparse
import base64
import ctypes
import json
import random
import statistics
import struct
import subprocess
import threading
import time
import urllib.request

PORT = 18098
TOKENS = 14


def bitmap(width, height, seed):
    row = (width * 3 + 3) // 4 * 4
    header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54 + row * height, 0, 0, 54, 40, width, height, 1, 24, 0, row * height, 0, 0, 0, 0)
    return header + random.Random(seed).randbytes(row * height)


def card(what="memory.used"):
    out = subprocess.run(["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"], capture_output=True, text=True).stdout
    return int(out.split()[0])


class Used:
    """What is in use on the first GPU, in bytes, by NVML, which answers in less than a millisecond."""

    class Memory(ctypes.Structure):
        _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]

    def __init__(self):
        self.nvml = ctypes.CDLL("libnvidia-ml.so.1")
        self.gpu = ctypes.c_void_p()
        if self.nvml.nvmlInit_v2() or self.nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self.gpu)):
            raise OSError("NVML knows no GPU")

    def now(self):
        memory = self.Memory()
        if self.nvml.nvmlDeviceGetMemoryInfo(self.gpu, ctypes.byref(memory)):
            raise OSError("NVML does not answer")
        return memory.used


def get(path):
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=5) as answer:
        return answer.read().decode()


def streamed(path, body):
    """Seconds to the first token, seconds per token from the second on, and tokens of the prompt."""
    body = {**body, "stream": True, "temperature": 0, "ignore_eos": True, "cache_prompt": False, "timings_per_token": True}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    began, times, prompt = time.monotonic(), [], 0
    with urllib.request.urlopen(request, timeout=300) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(event["error"])
            timings = event.get("timings") or {}
            if timings.get("predicted_n", 0) > len(times):
                times += [time.monotonic() - began] * (timings["predicted_n"] - len(times))
                prompt = timings.get("prompt_n", prompt)
    if len(times) < 4:
        raise RuntimeError(f"{len(times)} tokens came")
    return times[0], (times[-1] - times[2]) / (len(times) - 3), prompt


def encodes():
    """Encodes so far and their seconds, of pipeshard; none from stock."""
    try:
        vision = json.loads(get("/props")).get("pipeshard", {}).get("vision") or {}
        return vision.get("encodes", 0), vision.get("seconds", 0)
    except (OSError, ValueError):
        return 0, 0


def row(given, label, size, flags):
    width, height = map(int, size.split("x"))
    nvml, over = Used(), threading.Event()
    before, began = nvml.now(), time.monotonic()
    # what was in use, in MiB, and since when, in milliseconds
    history = [(0, 0)]

    def sample():
        while not over.wait(0.003):
            used = (nvml.now() - before) >> 20
            if used != history[-1][1]:
                history.append((round((time.monotonic() - began) * 1e3), used))

    log = open(given.out + ".log", "a")
    print("---", label, size, flags, file=log, flush=True)
    command = [given.server, "-m", given.model, "--mmproj", given.mmproj, "--port", str(PORT), "-np", "1", "-c", "8192", "--no-webui", *flags]
    server = subprocess.Popen(command, stdout=log, stderr=log)
    sampler = threading.Thread(target=sample)
    sampler.start()
    found = {"label": label, "size": size, "flags": flags}
    try:
        until = time.monotonic() + 120
        while True:
            if server.poll() is not None or time.monotonic() > until:
                raise RuntimeError("the server did not start")
            try:
                get("/health")
                break
            except OSError:
                time.sleep(0.1)
        image, text, encode = [], [], []
        asked = []
        for turn in range(3):
            asked.append(round((time.monotonic() - began) * 1e3))
            url = "data:image/bmp;base64," + base64.b64encode(bitmap(width, height, turn)).decode()
            parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
            count, seconds = encodes()
            image.append(streamed("/v1/chat/completions", {"messages": [{"role": "user", "content": parts}], "max_tokens": TOKENS}))
            now, seconds_now = encodes()
            if now > count:
                encode.append((seconds_now - seconds) * 1e3)
        for turn in range(2):
            tokens = [random.Random(turn).randrange(10, 200) for _ in range(image[0][2])]
            text.append(streamed("/completion", {"prompt": tokens, "n_predict": TOKENS}))
        found |= {"asked_ms": asked, "ttft_ms": [round(i[0] * 1e3) for i in image], "per_token_ms": [round(i[1] * 1e3, 2) for i in image],
                  "prompt_tokens": image[0][2], "text_ttft_ms": [round(t[0] * 1e3) for t in text],
                  "text_per_token_ms": [round(t[1] * 1e3, 2) for t in text], "encode_ms": [round(e, 1) for e in encode]}
    except (OSError, RuntimeError, ValueError) as why:
        found["failed"] = str(why)[:200]
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        over.set()
        sampler.join()
        log.close()
    found |= {"peak_mib": max(used for _, used in history), "history": history}
    return found


def shown(found, context):
    if "failed" in found:
        return f"{found['size']:>10} {found['label']:<24} {found['failed']}"
    again = statistics.median(found["ttft_ms"][1:])
    return (f"{found['size']:>10} {found['label']:<24} {found['peak_mib'] - context:6d} MiB  first token {found['ttft_ms'][0]:5d}, then {again:7.1f} ms  "
            f"token {statistics.median(found['per_token_ms'][1:]):6.2f} ms, after text {found['text_per_token_ms'][-1]:6.2f}  "
            f"text {found['text_ttft_ms'][-1]:5d} ms  encodes {found['encode_ms']}")


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("server", "model", "mmproj", "out"):
        ask.add_argument(name)
    ask.add_argument("--sizes", nargs="+", default=["868x476", "1932x1092"])
    ask.add_argument("--budgets", nargs="+", type=float, default=[2, 4, 8])
    ask.add_argument("--threads", type=int, default=8)
    ask.add_argument("--context", type=int, default=527, help="MiB of a bare CUDA context")
    ask.add_argument("--ours", default="", help="more flags for pipeshard's servers, in one word")
    ask.add_argument("--seconds", type=float, default=560)
    ask.add_argument("--stock", nargs="*", default=["locked", "mapped", "cpu"], choices=["locked", "mapped", "cpu"])
    given = ask.parse_args()
    until = time.monotonic() + given.seconds
    for size in given.sizes:
        width, height = map(int, size.split("x"))
        tokens = str(-(-width // 28) * -(-height // 28) + 32)
        same = ["-t", str(given.threads), "--image-max-tokens", tokens]
        for budget in given.budgets:
            # --fit counts what is free, so the context that is made first is not in its margin
            margin = ["-fitt", str(card("memory.free") - given.context - int(budget * 1024)), "-fitc", "8192"]
            locked = ["-lm", "none", "-b", "2048", "-ub", "2048"]
            report = f"{given.out}-{size}-{budget:g}.report.json"
            ways = [(f"{budget:g} GiB", ["--pipeshard-vram", f"{budget:g}G", "--pipeshard-report", report, *given.ours.split()])]
            stock = {"locked": margin + locked, "mapped": margin, "cpu": [*margin, "-lm", "none", "--no-mmproj-offload"]}
            ways += [(f"{budget:g} GiB stock, {way}", stock[way]) for way in given.stock]
            for label, flags in ways:
                if time.monotonic() > until:
                    print(f"{size:>10} {label:<24} left out: time was up", flush=True)
                    continue
                found = row(given, label, size, same + flags)
                with open(given.out, "a") as out:
                    print(json.dumps(found), file=out)
                print(shown(found, given.context), flush=True)


if __name__ == "__main__":
    main()
