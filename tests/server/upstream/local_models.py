"""A pytest plugin for llama.cpp's own server tests: local models in place of the hub's, and notes on what happened.

Upstream's tests fetch small models when they start. Here each preset gets a model that is there already, so expected texts
may not match; what counts is that stock and pipeshard do the same. Tests that need another model's abilities (images, a
model of some gigabytes) are skipped.

Environment: UPSTREAM_MODEL (a GGUF file), UPSTREAM_NOTES (where notes go, as JSON).
"""

import json
import os
import random
import sys
import types

import pytest
import requests

MODEL = os.environ["UPSTREAM_MODEL"]
NOTES = os.environ["UPSTREAM_NOTES"]
# Whose place the local model takes: models so small that no test can expect much of them.
SMALL = ("ggml-org/test-model-stories260K", "ggml-org/models", "ggml-org/stories15M_MOE")

notes = {"tests": {}, "servers": 0, "with_pipeshard": 0}
answers = []


def no_download(*_, **__):
    pytest.skip("needs a download")


# utils.py imports it to download files.
sys.modules["wget"] = types.SimpleNamespace(download=no_download)


def with_local_model(start):
    def started(server, *args, **kwargs):
        wanted = f"{server.model_hf_repo or ''} {server.model_hf_file or ''} {server.model_url or ''}".strip()
        if wanted and not server.model_file:
            small = server.model_hf_repo and server.model_hf_repo.startswith(SMALL) and not server.mmproj_url
            if not small or "split" in wanted:
                pytest.skip(f"needs the model {wanted}")
            server.model_file = MODEL
            if "bert" in wanted:
                # a model made for vectors says itself how it makes one of many
                server.pooling = server.pooling or "mean"
        if server.model_file:
            server.model_hf_repo = server.model_hf_file = server.model_url = None
        server.n_threads = server.n_threads or 1
        start(server, *args, **kwargs)
        notes["servers"] += 1
        if server.model_file:
            key = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {}
            props = requests.get(f"http://{server.server_host.split(',')[0]}:{server.server_port}/props", headers=key, timeout=30)
            notes["with_pipeshard"] += "pipeshard" in props.json()

    return started


def noting_answers(make_request):
    def noted(server, method, path, *args, **kwargs):
        response = make_request(server, method, path, *args, **kwargs)
        answers.extend(texts(response.body))
        return response

    return noted


def texts(body) -> list:
    """What a model said, in an answer of any kind."""
    if isinstance(body, dict):
        found = [[k, v] for k, v in body.items() if k in ("content", "text", "embedding", "relevance_score", "tokens")]
        return found + [t for v in body.values() for t in texts(v)]
    if isinstance(body, list):
        return [t for v in body for t in texts(v)]
    return []


def pytest_sessionstart(session):
    import utils

    utils.ServerPreset.load_all = staticmethod(lambda: None)
    utils.ServerProcess.start = with_local_model(utils.ServerProcess.start)
    utils.ServerProcess.make_request = noting_answers(utils.ServerProcess.make_request)


def pytest_runtest_setup():
    # some tests make up their prompts: both runs shall make up the same
    random.seed(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    known = notes["tests"].setdefault(item.nodeid, {"outcome": "passed", "why": ""})
    if call.when == "setup":
        answers.clear()
    if report.outcome != "passed":
        why = report.longrepr
        why = why[2] if isinstance(why, tuple) else getattr(getattr(why, "reprcrash", None), "message", str(why))
        known["outcome"], known["why"] = report.outcome, " ".join(str(why).split())[:300]
    if call.when == "call":
        known["answers"] = list(answers)
    return report


def pytest_sessionfinish():
    with open(NOTES, "w") as file:
        json.dump(notes, file)
