"""What cannot work is refused when the server starts: an exit code, and a sentence that says what to do."""

import pytest

from server import PATIENCE_S, Server, budget


def refused(tmp_path, *args) -> str:
    server = Server(tmp_path / "log", *args)
    try:
        assert server.process.wait(PATIENCE_S) == 1, server.said()
    finally:
        server.process.kill()
    return " ".join(server.said().split())


def test_a_budget_that_is_too_small(tmp_path, tiny):
    said = refused(tmp_path, "-m", tiny, "-c", 512, *budget(1 << 20))
    assert "a budget of 1 MiB is too small: the smallest that works is" in said
    assert "pipeshard: off, because" in said


@pytest.mark.parametrize("wrong", ["lots", "-1", "4X"])
def test_a_budget_that_is_none(tmp_path, tiny, wrong):
    said = refused(tmp_path, "-m", tiny, "--pipeshard", "--pipeshard-sim", "vram=1G", "--pipeshard-vram", wrong)
    assert "--pipeshard-vram" in said and wrong in said


def test_a_simulated_gpu_that_is_none(tmp_path, tiny):
    said = refused(tmp_path, "-m", tiny, "--pipeshard", "--pipeshard-sim", "vram=much")
    assert "--pipeshard-sim" in said and "much" in said


def test_no_gpu(tmp_path, tiny):
    said = refused(tmp_path, "-m", tiny, "-c", 512, "--pipeshard", "--pipeshard-vram", "1G")
    assert "no GPU was found" in said and "runs on the CPU" in said


def test_a_model_that_is_none(tmp_path):
    model = tmp_path / "none.gguf"
    model.write_bytes(b"GGUF" + bytes(20))
    assert "none.gguf" in refused(tmp_path, "-m", model, *budget(1 << 30))
