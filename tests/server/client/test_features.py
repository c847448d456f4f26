"""Features of llama-server beside pipeshard: each answers as in the stock server."""

import base64
import struct

import pytest
import requests

from models import write_lora
from server import MIB, Pair, Server, budget

TEXT = "The lighthouse keeper wrote a letter every Sunday, about the sea, the weather and the ships that had passed by. "


def test_a_slot_is_saved_and_restored_under_another_budget(tmp_path, smollm2, chat, slots):
    def begin_and_save(server):
        name = "ours.bin" if server is chat.ours else "stock.bin"
        begun = server.complete(TEXT * 2, 6, id_slot=3, cache_prompt=True)["tokens"]
        saved = server.post("/slots/3?action=save", filename=name)["n_saved"]
        return begun, saved

    begun, saved = chat.both(begin_and_save)
    assert saved >= 48
    longer = TEXT * 2 + "And then"

    def go_on(server, name):
        restored = server.post("/slots/1?action=restore", filename=name)["n_restored"]
        assert restored == saved
        made = server.complete(longer, 8, id_slot=1, cache_prompt=True)
        # the restored part was not computed again
        assert made["timings"]["prompt_n"] < 12
        return made["tokens"]

    expected = go_on(chat.stock, "stock.bin")
    assert go_on(chat.ours, "ours.bin") == expected
    args = ["-m", smollm2, "-c", 2048, "-np", 4, "--slot-save-path", slots]
    # here some layers' KV cache lies in host memory, there all of it on the device
    for within in [28 * MIB, 90 * MIB]:
        other = Server(tmp_path / f"{within}.log", *args, *budget(within)).ready()
        try:
            assert go_on(other, "ours.bin") == expected
            assert go_on(other, "stock.bin") == expected
        finally:
            assert other.stop() == 0


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, tiny):
    """A model with an adapter that is applied from the start."""
    folder = tmp_path_factory.mktemp("adapted")
    adapter = write_lora(folder / "adapter.gguf", "ffn_gate", (512, 2048), layers=6)
    with Pair(folder, ["-m", tiny, "-c", 512, "-np", 1, "--lora", adapter], within=32 * MIB) as pair:
        yield pair


def probabilities(server, **more) -> list:
    made = server.complete(TEXT, 6, n_probs=2, **more)
    return made["completion_probabilities"]


def test_an_adapter_is_taken_away_and_applied_again(adapted):
    def ask(server):
        answers = [probabilities(server)]
        for scale in [0.0, 0.5, 1.0]:
            server.post_list("/lora-adapters", [{"id": 0, "scale": scale}])
            answers.append(probabilities(server))
        return answers

    start, without, half, again = adapted.both(ask)
    assert start == again
    assert without != start and half not in (start, without)


def test_an_adapter_for_one_request(adapted):
    def ask(server):
        return [probabilities(server, lora=[{"id": 0, "scale": scale}]) for scale in [1.0, 0.0]]

    with_it, without = adapted.both(ask)
    assert with_it != without


def test_an_adapter_for_which_there_is_no_room(tmp_path, smollm2):
    """Compute buffers just fit; with an adapter these grow. The request fails, the server lives. Which budget does that is the plan's."""
    adapter = write_lora(tmp_path / "adapter.gguf", "attn_q", (576, 576), layers=30)
    args = ["-m", smollm2, "-c", 1024, "-np", 4, "--metrics", "--lora", adapter, "--lora-init-without-apply"]
    found = []
    for mib in range(36, 18, -1):
        server = Server(tmp_path / f"log-{mib}", *args, *budget(mib * MIB)).ready()
        try:
            if fails_with_the_adapter(server, mib):
                found.append(mib)
                break
        finally:
            assert server.stop() == 0
    assert found, "the adapter had room at every budget"


def fails_with_the_adapter(server, mib):
    def ask():
        return requests.post(server.url("/completion"), json={"prompt": TEXT, "n_predict": 4}, timeout=60)

    server.post_list("/lora-adapters", [{"id": 0, "scale": 0.0}])
    first = server.complete(TEXT, 4)["tokens"]
    server.post_list("/lora-adapters", [{"id": 0, "scale": 1.0}])
    if ask().status_code == 200:
        return False
    assert ask().status_code == 500
    assert f"a budget of {mib} MiB is too small: the smallest that works is" in server.said()
    tries = server.said().count("failed to allocate compute buffers")
    server.post_list("/lora-adapters", [{"id": 0, "scale": 0.0}])
    assert server.complete(TEXT, 4)["tokens"] == first
    # what is wanted now was there before: it is found at the first try
    assert server.said().count("failed to allocate compute buffers") == tries
    assert server.get("/props").json()["pipeshard"]["errors"] > 0
    return True


# One slot where every bit counts: which requests share a batch is a matter of time, and kernels round by batch.


def test_embeddings(tmp_path, smollm2):
    texts = [TEXT, "short", TEXT * 2]

    def ask(server):
        made = server.client().embeddings.create(model="any", input=texts, encoding_format="float")
        return [vector.embedding for vector in made.data]

    def packed(server):
        made = server.client().embeddings.create(model="any", input=TEXT, encoding_format="base64")
        raw = base64.b64decode(made.data[0].embedding)
        return struct.unpack(f"<{len(raw) // 4}f", raw)

    args = ["-m", smollm2, "-c", 512, "-np", 1, "--embeddings", "--pooling", "mean"]
    with Pair(tmp_path, args, within=40 * MIB) as pair:
        vectors = pair.both(ask)
        assert [len(v) for v in vectors] == [576] * 3 and vectors[0] != vectors[1]
        assert len(pair.both(packed)) == 576
        assert pair.ours.get("/props").json()["pipeshard"]["engaged"]


def test_reranking(tmp_path, smollm2):
    documents = ["The ships passed by.", TEXT, "Bread is made of flour, water, salt and yeast.", "x"]

    def ask(server):
        made = server.post("/v1/rerank", model="any", query="What did the keeper see?", documents=documents)
        return [(result["index"], result["relevance_score"]) for result in made["results"]]

    # SmolLM2 was not made to rank: what counts is that every score is the stock server's
    with Pair(tmp_path, ["-m", smollm2, "-c", 512, "-np", 1, "--rerank"], within=40 * MIB) as pair:
        scores = dict(pair.both(ask))
        assert sorted(scores) == [0, 1, 2, 3] and len(set(scores.values())) == 4


def test_speculative_decoding(tmp_path, tiny):
    def ask(server):
        made = server.complete("abcabcabc" * 6, 24)
        return made["tokens"], made["timings"]["draft_n"], made["timings"]["draft_n_accepted"]

    args = ["-m", tiny, "-md", tiny, "-c", 512, "-np", 1, "--spec-draft-n-max", 4, "--spec-type", "draft-simple"]
    with Pair(tmp_path, args, within=64 * MIB) as pair:
        tokens, drafted, accepted = pair.both(ask)
        assert len(tokens) == 24 and drafted > 0 and accepted > 0
        # one budget for both models
        assert pair.ours.get("/props").json()["pipeshard"]["held"] <= 64 * MIB


def test_speculative_decoding_with_another_model(tmp_path, smollm2, chat):
    """A draft that is often wrong changes nothing about the answer."""

    def ask(server):
        made = server.complete("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,", 16)
        return made["tokens"]

    args = ["-m", smollm2, "-c", 512, "-np", 1, "--spec-type", "ngram-simple", "--spec-draft-n-max", 4]
    with Pair(tmp_path, args, within=40 * MIB) as pair:
        assert pair.both(ask) == ask(chat.stock)


def test_the_context_shifts(tmp_path, tiny):
    def ask(server):
        made = server.complete("abcdefghij" * 5, 260, ignore_eos=True)
        return made["tokens"], made["truncated"]

    # the smaller budget has some layers' KV cache in host memory
    for within in [22 * MIB, 40 * MIB]:
        args = ["-m", tiny, "-c", 256, "-np", 1, "--context-shift", "--keep", 8]
        with Pair(tmp_path / str(within), args, within=within) as pair:
            tokens, truncated = pair.both(ask)
            assert len(tokens) == 260 and truncated


def test_caches_of_other_types(tmp_path, smollm2):
    def ask(server):
        return server.complete(TEXT, 8)["tokens"]

    args = ["-m", smollm2, "-c", 512, "-np", 2, "-kvu", "-ctk", "q8_0", "-ctv", "q8_0", "-fa", "on"]
    with Pair(tmp_path, args, within=40 * MIB) as pair:
        assert len(pair.both(ask)) == 8


def test_a_prompt_kept_in_host_memory_comes_back(tmp_path, tiny):
    """The server's prompt cache saves and restores the state of whole sequences."""

    def ask(server):
        first = "abc" * 40
        answers = [server.complete(first, 6, cache_prompt=True)["tokens"]]
        answers.append(server.complete("xyz" * 40, 6, cache_prompt=True)["tokens"])
        made = server.complete(first, 6, cache_prompt=True)
        return answers + [made["tokens"]], made["timings"]["prompt_n"]

    with Pair(tmp_path, ["-m", tiny, "-c", 512, "-np", 1, "--cache-ram", 64], within=32 * MIB) as pair:
        answers, computed = pair.both(ask)
        assert answers[0] == answers[2] != answers[1]
        assert computed < 60
