"""llama-server in a process of its own, stock or with pipeshard, and what tests ask it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import openai
import requests

# The folder of the executables under test, and the library: `cargo test` says where they are.
TOOLS = Path(os.environ.get("PIPESHARD_TEST_TOOLS", Path(__file__).parents[3] / "target/debug"))
MIB = 1 << 20
# A server that loads, or a request, that takes longer has hung.
PATIENCE_S = 120


def clean_environment() -> dict:
    """The environment without what changes llama.cpp, ggml or pipeshard, but with the library under test."""
    prefixes = ("LLAMA_", "GGML_", "PIPESHARD_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    library = os.environ.get("PIPESHARD_LIBRARY", TOOLS / "libpipeshard.so")
    # an abort shall not wait for a debugger
    return kept | {"PIPESHARD_LIBRARY": str(library), "GGML_NO_BACKTRACE": "1", "OPENAI_API_KEY": "none",
                   "PIPESHARD_PLAN_CACHE": "off"}


def budget(bytes_: int, device: int = 1 << 30) -> list:
    """Flags for pipeshard within a budget, on a simulated GPU."""
    return ["--pipeshard", "--pipeshard-vram", str(bytes_), "--pipeshard-sim", f"vram={device}"]


# Without pipeshard, and with the CPU's plain kernels, which the simulated GPU computes with as well.
STOCK = ["--no-repack"]


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """One llama-server. Starting does not wait: `ready` does."""

    def __init__(self, log: Path, *args):
        self.port = free_port()
        self.log = log
        command = [TOOLS / "llama-server", "--host", "127.0.0.1", "--port", self.port, "--threads", 1]
        command += ["--threads-http", 8, "--offline", *args]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=clean_environment(),
            )

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def ready(self) -> "Server":
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"llama-server ended with {self.process.returncode}:\n{self.said()[-4000:]}")
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(self.url("/health"), timeout=PATIENCE_S).status_code == 200:
                    return self
            time.sleep(0.02)
        raise AssertionError(f"llama-server was not ready after {PATIENCE_S} s:\n{self.said()[-4000:]}")

    def get(self, path: str):
        return requests.get(self.url(path), timeout=PATIENCE_S)

    def post(self, path: str, **body) -> dict:
        response = requests.post(self.url(path), json=body, timeout=PATIENCE_S)
        assert response.status_code == 200, response.text
        return response.json()

    def post_list(self, path: str, body: list) -> None:
        response = requests.post(self.url(path), json=body, timeout=PATIENCE_S)
        assert response.status_code == 200, response.text

    def complete(self, prompt, n_predict: int, **more) -> dict:
        """A completion without randomness. The answer has the tokens as well as the text."""
        settled = {"temperature": 0, "seed": 1, "return_tokens": True, "cache_prompt": False}
        return self.post("/completion", prompt=prompt, n_predict=n_predict, **(settled | more))

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url("/v1"), api_key="none", timeout=PATIENCE_S, max_retries=0)

    def stop(self) -> int:
        """Ends it as a user would, and says with what exit code it went."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                print(f"llama-server did not end within {PATIENCE_S} s", file=sys.stderr)
                self.process.kill()
                self.process.wait()
        return self.process.returncode


class Pair:
    """The same server twice: stock, and with pipeshard."""

    def __init__(self, folder: Path, args, within: int, device: int = 1 << 30, sets=()):
        folder.mkdir(parents=True, exist_ok=True)
        self.stock = Server(folder / "stock.log", *args, *STOCK)
        self.ours = Server(folder / "pipeshard.log", *args, *budget(within, device), *sets)

    def __enter__(self) -> "Pair":
        self.stock.ready()
        self.ours.ready()
        return self

    def __exit__(self, *_):
        codes = self.stock.stop(), self.ours.stop()
        assert codes == (0, 0), f"exit codes {codes}:\n{self.ours.said()[-4000:]}"
        assert "pipeshard:" not in self.stock.said(), "the stock server is none"
        assert "pipeshard: engaged on SIM0" in self.ours.said(), self.ours.said()[-4000:]

    def both(self, ask):
        """The answer to `ask` of the server with pipeshard, once it was found to be that of the stock server."""
        stock, ours = ask(self.stock), ask(self.ours)
        assert ours == stock
        return ours
