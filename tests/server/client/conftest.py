"""What the tests of this folder share. `cargo test --test server` runs them; see docs/server.md for running them by hand."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server import MIB, TOOLS, Pair

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The demo model: 94 MiB, 30 layers."""
    fetch = [sys.executable, ROOT / "scripts/fetch.py", "demo-model"]
    return Path(subprocess.run(fetch, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A model of random weights: 40 MiB, 6 layers, a token for each byte."""
    path = tmp_path_factory.mktemp("models") / "tiny-llama.gguf"
    subprocess.run([TOOLS / "pipeshard-lab", "synth", "--shape", "tiny-llama", path], check=True, stdout=subprocess.DEVNULL)
    return path


@pytest.fixture(scope="session")
def wait_until():
    """Waits until something holds, for half a minute at most."""

    def wait(holds):
        deadline = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    return wait


@pytest.fixture(scope="session")
def slots(tmp_path_factory) -> Path:
    """Where servers save slots."""
    return tmp_path_factory.mktemp("slots")


@pytest.fixture(scope="session")
def chat(tmp_path_factory, smollm2, slots):
    """SmolLM2 with four slots, stock and within 40 MiB, in which not all of the KV cache fits on the device."""
    folder = tmp_path_factory.mktemp("chat")
    args = ["-m", smollm2, "-c", 2048, "-np", 4, "--metrics", "--slots", "--slot-save-path", slots]
    with Pair(folder, args, within=40 * MIB) as pair:
        yield pair


def pytest_sessionfinish(session, exitstatus):
    """A line for whoever runs this from another program."""
    if path := os.environ.get("PIPESHARD_TEST_COUNT"):
        Path(path).write_text(str(session.testscollected))
